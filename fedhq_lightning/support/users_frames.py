"""The lines of a traceback that are the user's: neither this package's nor a library's."""

import sysconfig
import traceback
from pathlib import Path

_NOT_THEIRS = tuple(
    str(Path(place).resolve())
    for place in (str(Path(__file__).parent.parent), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
)


def users_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of the user's own files, innermost last."""
    return [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]


def _is_own(file_name: str) -> bool:
    path = Path(file_name)
    return path.is_file() and not str(path.resolve()).startswith(_NOT_THEIRS)
