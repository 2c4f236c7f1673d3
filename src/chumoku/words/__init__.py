"""Words: every sentence that the commands show to people, in English and in Japanese."""

from __future__ import annotations

from collections.abc import Mapping

from chumoku.words.en import SENTENCES as ENGLISH
from chumoku.words.ja import SENTENCES as JAPANESE

CATALOGUE: Mapping[str, Mapping[str, str]] = {"en": ENGLISH, "ja": JAPANESE}
LANGUAGES = tuple(CATALOGUE)


def say(key: str, lang: str, /, **fields: object) -> str:
    """A sentence of the catalogue with its fields filled in.

    Parameters
    ----------
    key : str
        Name of the sentence.
    lang : "en" or "ja"
    **fields
        Everything that the sentence names in braces.

    Raises
    ------
    KeyError
        For a sentence, language or field that does not exist: a mistake of ours, not of a user.
    """
    return CATALOGUE[lang][key].format(**fields)


def language(environment: Mapping[str, str]) -> str:
    """The language of a locale, as POSIX orders its variables; English when none says Japanese."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if environment.get(name):
            return "ja" if environment[name].lower().startswith("ja") else "en"
    return "en"
