"""Drawing what this machine has."""

from __future__ import annotations

from collections.abc import Mapping

from chumoku.view.scene import Machine
from chumoku.view.terminal.ink import Ink, Line, Page, Span, cells, fit, title, wrap
from chumoku.words import say


def info(machine: Machine, page: Page) -> list[Line]:
    """Versions, machine, kernels, model."""
    lang = page.lang
    own = machine.versions["chumoku"]
    lines: list[Line] = [(), (Span("  "), Span(say("info.title", lang, version=own), "loud"))]
    lines += title(page, say("info.versions", lang))
    absent = say("info.absent", lang)
    versions = {name: text or absent for name, text in machine.versions.items()}
    lines += _table(versions, page, quiet=[n for n, v in machine.versions.items() if v is None])
    lines += title(page, say("info.machine", lang))
    facts = {
        say("info.system", lang): machine.system,
        say("info.isa", lang): machine.isa,
        say("info.threads", lang): str(machine.threads),
    }
    lines += _table(facts, page)
    lines += title(page, say("info.kernels", lang), say("info.kernels_note", lang))
    lines += _table(
        {name: _kernel(name, reason, lang) for name, reason in machine.kernels.items()}, page
    )
    package, version = machine.model
    lines += title(page, say("info.model", lang))
    sentence = say("info.model_missing", lang)
    if version is not None:
        sentence = say("info.model_there", lang, version=version)
    return [*lines, *_table({package: sentence}, page), ()]


def _kernel(name: str, reason: str | None, lang: str) -> str:
    if reason is not None:
        return say("info.refuses", lang, reason=reason)
    return say("info.reference" if name == "reference" else "info.runs", lang)


def _table(facts: Mapping[str, str], page: Page, quiet: list[str] | None = None) -> list[Line]:
    room = max(cells(name) for name in facts)
    lines: list[Line] = []
    for name, text in facts.items():
        ink: Ink = "quiet" if name in (quiet or []) else "plain"
        for place, part in enumerate(wrap(text, max(20, page.width - room - 8))):
            lead = name if place == 0 else ""
            lines.append(
                (Span("   "), Span(fit(lead, room, page), "quiet"), Span("   "), Span(part, ink))
            )
    return lines
