"""The report of a run: one HTML file with everything in it, for a browser on a desk or a phone, online or not."""

from pathlib import Path

from fedhq_lightning.report.allocation_section import boundary_section
from fedhq_lightning.report.banner import banner
from fedhq_lightning.report.clients_section import clients_section
from fedhq_lightning.report.course_section import course_section
from fedhq_lightning.report.model_section import model_section
from fedhq_lightning.report.numbers_section import numbers_section
from fedhq_lightning.report.page import contents, page
from fedhq_lightning.report.sections import header, recipe_section, summary_section, versions_section
from fedhq_lightning.run.run import Run
from fedhq_lightning.support.atomic_files import write_atomically

_SECTIONS = (
    course_section,
    boundary_section,
    clients_section,
    model_section,
    summary_section,
    numbers_section,
    recipe_section,
    versions_section,
)


def write_report(run: Run) -> Path:
    """Write `report.html` into a run's folder.

    The same run gives the same bytes. A report that is there already is replaced whole, never left half written.

    Args:
        run: Whose folder it is.

    Returns:
        Path of the report.

    Raises:
        ConfigurationError: `summary.json` or `rounds.jsonl` is missing or damaged.
    """
    path = run.folder / "report.html"
    write_atomically(path, run_page(run))
    return path


def run_page(run: Run) -> str:
    """The page of the report as text; arguments and errors as for `write_report`."""
    title = " ".join(str(part) for part in (run.summary.get("recipe"), run.name) if part)
    sections = [text for section in _SECTIONS if (text := section(run))]
    return page(f"{title}: report", "\n".join((header(run), banner(run), contents(sections), *sections)))
