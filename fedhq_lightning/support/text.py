"""Texts of libraries and of the user, made short enough for one of our messages."""


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shortened(text: str, limit: int = 200) -> str:
    """A text of anybody's as one line of at most `limit` characters, all of which can be printed; spaces for others."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
