"""A mistake in the user's own code, told from their side: their lines, what was raised, and where in the run."""

import sysconfig
import traceback
from pathlib import Path

_NOT_THEIRS = tuple(
    str(Path(place).resolve())
    for place in (str(Path(__file__).parent.parent), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
)


def told_from_own_lines(error: Exception) -> str | None:
    """The error with the lines of the traceback that are neither this package's nor a library's.

    Args:
        error: Whatever was raised, with its notes.

    Returns:
        Some lines of text; None where no line is the user's, so that the mistake is not theirs either.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    if not frames:
        return None
    lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
    return "".join(lines).rstrip()


def _is_own(file_name: str) -> bool:
    path = Path(file_name)
    return path.is_file() and not str(path.resolve()).startswith(_NOT_THEIRS)
