"""The study's storage: opened, checked to be this search's, and joined."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.lane_options import default_of_option
from fedhq_lightning.recipe.identity import changes, in_words
from fedhq_lightning.support.atomic_files import told_to_user
from fedhq_lightning.support.paths import expand_if_given
from fedhq_lightning.support.quiet import libraries_quiet
from fedhq_lightning.support.untrusted_files import opened

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.storages.journal._file import BaseJournalFileLock

    from fedhq_lightning.experiments.objectives import Objective

STUDY_NAME = "fedhq-tune"
JOURNAL = "study.log"
_TUNE = "tune-"
_DESIGN, _FOLDER = "design", "folder"
_PASSWORD = re.compile(r"(://[^:/@]*):[^@/]*@")
_MOST_BYTES = 2**28
"""Of a journal: a million lines, as of 10,000 trials with 50 rounds."""
_SECONDS_TO_WAIT = 10
_GRACE_SECONDS = 10
"""How old a journal's lock must be to be taken for a killed writer's; writing a line takes milliseconds."""


@dataclass(frozen=True)
class StudyPlace:
    """Where a study is kept and where its files go.

    Attributes:
        storage: Path of the journal file, or a database's URL.
        folder: The tune folder.
    """

    storage: str
    folder: Path


def default_place(root: Path, recipe_name: str, storage: str | None) -> StudyPlace:
    """Where a new study goes; nothing is made yet.

    Args:
        root: `trainer.default_root_dir`.
        recipe_name: The recipe's.
        storage: As given: a URL, a journal file, a folder that holds or shall hold one, or None.
    """
    storage = expand_if_given(storage, "storage")
    folder = root / recipe_name / f"{_TUNE}{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    if storage is None:
        return StudyPlace(str(folder / JOURNAL), folder)
    if "://" in storage:
        return StudyPlace(storage, folder)
    path = Path(storage)
    if path.is_dir():
        return StudyPlace(str(path / JOURNAL), path)
    return StudyPlace(str(path), path.parent if path.name == JOURNAL and path.exists() else folder)


def join(place: StudyPlace, design: Mapping[str, Any], objectives: tuple[Objective, ...]) -> tuple[Study, StudyPlace]:
    """Open the study of a storage, or make it.

    Args:
        place: See `default_place`.
        design: What makes this study: recipe, search, objectives, ... A study of another one is refused.
        objectives: Their directions become the study's.

    Returns:
        The study, and its place with the folder that it was made with.

    Raises:
        ConfigurationError: The storage is locked, unreadable, no storage, or holds another study.
    """
    import optuna

    if Path(place.storage) == place.folder / JOURNAL:
        _make(place.folder)
    with told(place.storage):
        storage = open_storage(place.storage)
        others = [each.study_name for each in storage.get_all_studies() if each.study_name != STUDY_NAME]
        if others and "://" not in place.storage:
            raise ConfigurationError(
                f"it holds the study {others[0]!r}, which is not of fedhq tune; give another --storage"
            )
        directions = [each.optuna_direction for each in objectives]
        plain = json.loads(json.dumps(design))
        try:
            study = optuna.create_study(study_name=STUDY_NAME, storage=storage, directions=directions)
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
            attributes = _attributes_of(study)
            _check_same(attributes[_DESIGN], plain)
            folder = Path(attributes[_FOLDER])
            # Files are written there, and whoever wrote the storage has chosen the name.
            if not folder.name.startswith(_TUNE):
                folder = place.folder.absolute()
        else:
            folder = place.folder.absolute()
            study.set_user_attr(_FOLDER, str(folder))
            study.set_user_attr(_DESIGN, plain)
    if not os.path.isdir(folder):  # which takes whatever is no path for what is not there
        folder = place.folder.absolute()  # moved, or another machine's
    with told_to_user(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return study, StudyPlace(place.storage, folder)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the folder {folder} cannot be made ({error.strerror or error}); set trainer.default_root_dir to a folder "
            "that can be written"
        ) from error


def load(place: StudyPlace) -> Study:
    """The study of a storage that another process has joined before.

    Raises:
        ConfigurationError: The storage cannot be read.
    """
    import optuna

    with told(place.storage):
        return optuna.load_study(study_name=STUDY_NAME, storage=open_storage(place.storage))


def open_storage(storage: str) -> BaseStorage:
    """Optuna's storage at a URL or in a journal file, which is made where there is none."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in storage:
        return optuna.storages.RDBStorage(storage)
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    # Optuna waits for a lock that can never be taken, such as in a folder that is read-only, or raises deep inside.
    if not os.access(Path(storage).parent, os.W_OK) or (Path(storage).exists() and not os.access(storage, os.W_OK)):
        raise ConfigurationError("no permission to write it")
    if Path(storage).exists():
        with opened(Path(storage)) as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise ConfigurationError(f"is larger than {_MOST_BYTES:,} bytes, the most that is read")
    backend = JournalFileBackend(storage, lock_obj=_journal_lock(storage))
    _mend(storage)
    return JournalStorage(backend)


@contextmanager
def told(storage: str) -> Iterator[None]:
    """Make what a storage refuses an error that the user can mend, and keep Optuna's notices off the terminal.

    Raises:
        ConfigurationError: In place of any error of Optuna's, of the disk's or of the database's.
    """
    try:
        with libraries_quiet("optuna"):
            yield
    except ConfigurationError as error:
        raise ConfigurationError(f"storage {_shown(storage)}: {error}") from error
    except Exception as error:
        text = " ".join(str(error.__cause__ or error).split())
        hint = "" if "://" in storage else "; give another --storage (for SQLite, sqlite:///FILE)"
        raise ConfigurationError(
            f"storage {_shown(storage)}: cannot be used: {type(error).__name__}: {_shown(text)[:300]}{hint}"
        ) from error


def _journal_lock(path: str) -> BaseJournalFileLock:
    """The lock of a journal's writers, which is broken where a killed one has left it.

    Not Optuna's default: that is a link to the path as given, and where this is relative nobody can tell how old the
    lock is, so that everybody waits for ever.
    """
    from optuna.storages.journal import JournalFileOpenLock

    return JournalFileOpenLock(path, grace_period=_GRACE_SECONDS)


def _mend(path: str) -> None:
    """Cut off a last line without its end: what a worker that was killed while writing has left.

    The next line would be written behind it, and both would be lost.
    """
    from optuna.storages.journal._file import get_lock_file

    if not _is_torn(path):
        return
    with get_lock_file(_journal_lock(path)), open(path, "r+b") as file:
        content = file.read()
        if not content.endswith(b"\n") and content.startswith(b'{"op_code"'):
            file.truncate(content.rfind(b"\n") + 1)


def _is_torn(path: str) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _attributes_of(study: Study) -> dict[str, Any]:
    """The study's notes, which whoever makes it writes right afterwards."""
    until = time.monotonic() + _SECONDS_TO_WAIT
    while _DESIGN not in (attributes := study.user_attrs):
        if time.monotonic() > until:
            raise ConfigurationError(
                f"its study {STUDY_NAME!r} does not say of which recipe it is; give another --storage"
            )
        time.sleep(0.1)
    return attributes


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse another design; the message names the part of it and what differs."""
    if found := changes(before, now, default_of=default_of_option):
        raise ConfigurationError(
            f"its study is of another {found[0].name.partition('.')[0]}: {in_words(found)}; go on with what it was "
            "made with, or give another --storage"
        )


def _shown(text: str) -> str:
    """Without a password."""
    return _PASSWORD.sub(r"\1:***@", text)
