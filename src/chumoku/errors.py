"""The library's three errors: each is also the built-in error a caller would catch."""

# What came is told in one line of at most so many characters, whatever it was.
LONGEST = 300


class ChumokuError(Exception):
    """Base of the library's errors: which argument, what came, what was expected, and the cure.

    Parameters
    ----------
    argument : str
        Name of the argument, file or option at fault.
    got : str
        What came.
    expected : str
        What was expected in its place.
    cure : str
        One sentence that says what to do.
    """

    def __init__(self, argument: str, got: str, expected: str, cure: str = "") -> None:
        self.argument = argument
        self.got = _one_line(got)
        self.expected = expected
        self.cure = cure
        message = f"{argument}: got {self.got}, expected {expected}."
        super().__init__(f"{message} {cure}" if cure else message)

    def __reduce__(self) -> tuple[type["ChumokuError"], tuple[str, str, str, str]]:
        """Survive pickling, as errors must that cross a process border."""
        return type(self), (self.argument, self.got, self.expected, self.cure)


class InvalidArgumentError(ChumokuError, ValueError):
    """A value cannot be right: a shape, a number, a name."""


class InvalidTypeError(ChumokuError, TypeError):
    """A value is of the wrong kind: not an array, a dtype that does not fit."""


class UnavailableError(ChumokuError, RuntimeError):
    """Legal, but not to be had here: a kernel that refuses, a package that is missing."""


def _one_line(text: str) -> str:
    line = " ".join(text.split()) if "\n" in text else text
    if len(line) <= LONGEST:
        return line
    return f"{line[: LONGEST - 40]} ... {line[-35:]}"
