"""Texts of libraries, of the user and of others, made fit to be shown."""

import re

_DOES_SOMETHING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shortened(text: str, limit: int = 200) -> str:
    """A text of anybody's as one line of at most `limit` characters, all of which can be printed; spaces for others."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def printable(text: str, encoding: str | None = None) -> str:
    r"""Text of anybody's, so that a terminal or a page shows it and does nothing else.

    Written as escapes are control characters (but for line ends and tabs), those that turn the direction of what
    follows, halves of characters, and whatever an encoding lacks.

    Args:
        text: Anything.
        encoding: Of where it is shown; None for UTF-8.

    >>> print(printable("loss\x1b[2J \u202ecod.exe"), printable("\u00b5s", "ascii"))
    loss\x1b[2J \u202ecod.exe \xb5s
    """
    if not text.isascii() or not text.isprintable():
        text = _DOES_SOMETHING.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
    return text.encode(encoding, "backslashreplace").decode(encoding) if encoding and not text.isascii() else text
