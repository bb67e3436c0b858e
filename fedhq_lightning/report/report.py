"""The report of a run: one HTML file with everything in it, for a browser on a desk or a phone, online or not."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from fedhq_lightning.report.allocation_section import boundary_section
from fedhq_lightning.report.clients_section import clients_section
from fedhq_lightning.report.course_section import course_section
from fedhq_lightning.report.model_section import model_section
from fedhq_lightning.report.numbers_section import numbers_section
from fedhq_lightning.report.on_clients_section import on_clients_section
from fedhq_lightning.report.page import contents, page
from fedhq_lightning.report.sections import header, recipe_section, summary_section, versions_section
from fedhq_lightning.run.run import Run
from fedhq_lightning.support.atomic_files import write_atomically

_PICTURED = (course_section, boundary_section, clients_section, on_clients_section, model_section)
_WRITTEN = (summary_section, numbers_section, recipe_section, versions_section)


def pictured(run: Run) -> list[str]:
    """The sections with pictures, which take nearly all of a report's time; errors as for `write_report`."""
    return _there(section(run) for section in _PICTURED)


def write_report(run: Run, pictures: Sequence[str] | None = None) -> Path:
    """Write `report.html` into a run's folder.

    The same run gives the same bytes. A report that is there already is replaced whole, never left half written.

    Args:
        run: Whose folder it is.
        pictures: What `pictured` gave, where that was asked for before.

    Returns:
        Path of the report.

    Raises:
        ConfigurationError: `summary.json` or `rounds.jsonl` is missing or damaged.
    """
    path = run.folder / "report.html"
    write_atomically(path, run_page(run, pictures))
    return path


def run_page(run: Run, pictures: Sequence[str] | None = None) -> str:
    """The page of the report as text; arguments and errors as for `write_report`."""
    title = " ".join(str(part) for part in (run.summary.get("recipe"), run.name) if part)
    sections = [*(pictured(run) if pictures is None else pictures), *_there(section(run) for section in _WRITTEN)]
    return page(f"{title}: report", "\n".join((header(run), contents(sections), *sections)))


def _there(sections: Iterable[str]) -> list[str]:
    return [text for text in sections if text]
