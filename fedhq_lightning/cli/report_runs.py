"""What `fedhq report RUN_DIR...` does: one run's report anew, or several runs on one page."""

from collections.abc import Sequence
from pathlib import Path

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.side_by_side import runs_side_by_side
from fedhq_lightning.experiments.side_by_side_page import runs_page
from fedhq_lightning.report.page import MARK
from fedhq_lightning.report.report import run_page, write_report
from fedhq_lightning.run.run import Run
from fedhq_lightning.support.atomic_files import told_to_user, write_atomically

DEFAULT_OUTPUT = "comparison.html"
_LOOKED_AT = 2000  # bytes of a file that show whether it is a page of ours


def report_runs(run_dirs: Sequence[Path], output: Path | None = None) -> Path:
    """Write one run's report, or one page that compares several runs.

    Args:
        run_dirs: Folders of finished runs.
        output: The file to write; by default the `report.html` of one run, or `comparison.html` in the working
            directory for several. A file that is no page of ours is never replaced.

    Returns:
        Path of the page.

    Raises:
        ConfigurationError: No folder, one given twice, one that holds no finished run, runs that cannot be compared, or
            a file that cannot be written.
    """
    if not run_dirs:
        raise ConfigurationError("report: no run was given; give the folder of one or more runs, runs/RECIPE/RUN")
    _check_different(run_dirs)
    for run_dir in run_dirs:
        _check_finished(run_dir)
    if len(run_dirs) == 1 and output is None:
        return write_report(Run(run_dirs[0]))
    path = Path(DEFAULT_OUTPUT) if output is None else output
    _check_ours(path)
    if len(run_dirs) == 1:
        text = run_page(Run(run_dirs[0]))
    else:
        text = runs_page(runs_side_by_side([Run(run_dir) for run_dir in run_dirs]))
    write_atomically(path, text)
    return path


def _check_different(run_dirs: Sequence[Path]) -> None:
    given: dict[Path, Path] = {}
    for run_dir in run_dirs:
        place = run_dir.resolve()
        if place in given:
            also = "" if str(given[place]) == str(run_dir) else f" (also as {given[place]})"
            raise ConfigurationError(f"report {run_dir}: the same run was given twice{also}; give each run once")
        given[place] = run_dir


def _check_finished(run_dir: Path) -> None:
    if (run_dir / "summary.json").is_file():
        return
    if not run_dir.exists():
        raise ConfigurationError(
            f"report {run_dir}: no such folder; give the folder of a run, such as runs/RECIPE/RUN, or its name (fedhq "
            "runs)"
        )
    if not run_dir.is_dir():
        raise ConfigurationError(f"report {run_dir}: a file; give the folder of the run, such as runs/RECIPE/RUN")
    if (run_dir / "rounds.jsonl").is_file() or (run_dir / "checkpoints").is_dir():
        raise ConfigurationError(
            f"report {run_dir}: this run did not end, it has no summary.json; go on with it first: "
            f"fedhq resume {run_dir}"
        )
    within = sorted(path.parent for shape in ("*", "*/*") for path in run_dir.glob(f"{shape}/summary.json"))
    if within:
        raise ConfigurationError(
            f"report {run_dir}: holds runs and is none; give its {len(within)} finished runs themselves, such as "
            f"{within[-1]}"
        )
    raise ConfigurationError(f"report {run_dir}: holds no run; give the folder of a run, such as runs/RECIPE/RUN")


def _check_ours(path: Path) -> None:
    """A file of somebody else's is not replaced."""
    if path.is_dir():
        raise ConfigurationError(f"report: {path} is a folder; name a file, such as {path / DEFAULT_OUTPUT}")
    if not path.exists():
        return
    with told_to_user(path), path.open("rb") as file:
        beginning = file.read(_LOOKED_AT)
    if MARK.encode() not in beginning:
        raise ConfigurationError(
            f"report: {path} is there already and is no report of ours; name another with --output, or remove it"
        )
