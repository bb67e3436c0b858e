"""A mistake in the user's own code, told from their side: their lines, what was raised, and where in the run."""

import traceback

from fedhq_lightning.support.users_frames import users_frames


def told_from_own_lines(error: Exception) -> str | None:
    """The error with the lines of the traceback that are neither this package's nor a library's.

    Args:
        error: Whatever was raised, with its notes.

    Returns:
        Some lines of text; None where no line is the user's, so that the mistake is not theirs either.
    """
    frames = users_frames(error)
    if not frames:
        return None
    lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
    return "".join(lines).rstrip()
