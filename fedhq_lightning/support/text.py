"""Words of others, cut to what fits into a message."""


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
