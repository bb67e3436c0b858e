"""One way to read back what a run logged, wherever it is."""

from pathlib import Path

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.logged_rows import LoggedHistory
from fedhq_lightning.support.paths import expand_if_given

_GIVE = (
    "give a run directory (it holds rounds.jsonl), a .wandb file, an offline-run-* folder, or "
    "wandb:entity/project/run_id of a run at Weights & Biases"
)
_MOST_LISTED = 3


def read_history(where: str | Path) -> LoggedHistory:
    """What a run logged, round by round.

    Args:
        where: A run directory; a `.wandb` file, the folder of one, or a folder of such folders, all of one run; or,
            the only one that uses the network, a run at Weights & Biases: `entity/project/run_id` where no folder
            begins so, `wandb:entity/project/run_id`, or the address of its page.

    Raises:
        ConfigurationError: Nothing is there, it is no run, it is damaged, or it cannot be reached.
    """
    where = expand_if_given(where)
    path = Path(where)
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_file(path)
    if isinstance(where, str) and not _begins_here(path):
        from fedhq_lightning.run.online_wandb import parse_run_path, read_online

        run_path = parse_run_path(where)
        if run_path is not None:
            return read_online(run_path)
    raise ConfigurationError(f"{where}: there is no such file or folder; {_GIVE}")


def _begins_here(path: Path) -> bool:
    """Whether a folder is meant: a mistyped name in it is no reason to ask a server."""
    return path.is_absolute() or path.parts[:1] == ("..",) or Path(*path.parts[:1]).exists()


def _read_file(path: Path) -> LoggedHistory:
    if path.name == "rounds.jsonl":
        return _read_folder(path.parent)
    if path.suffix != ".wandb":
        raise ConfigurationError(f"{path}: not a run; {_GIVE}")
    from fedhq_lightning.run.offline_wandb import read_offline

    return read_offline(str(path), [path])


def _read_folder(path: Path) -> LoggedHistory:
    if (path / "rounds.jsonl").is_file():
        from fedhq_lightning.run.run import Run

        return Run(path).logged()
    for pattern in ("*.wandb", "*run-*/*.wandb", "wandb/*run-*/*.wandb"):
        files = [file for file in path.glob(pattern) if "latest-run" not in file.relative_to(path).parts]
        if files:
            from fedhq_lightning.run.offline_wandb import read_offline

            # Folders are named by the time at which they were made.
            files.sort(key=lambda file: (file.parent.name.removeprefix("offline-"), file.name))
            return read_offline(str(path), files)
    runs = sorted(str(file.parent) for pattern in ("*", "*/*") for file in path.glob(f"{pattern}/rounds.jsonl"))
    hint = f"; runs in it: {', '.join(runs[-_MOST_LISTED:])}" if runs else ""
    raise ConfigurationError(f"{path}: not a run{hint}; {_GIVE}")
