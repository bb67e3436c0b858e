"""The report of a run: one HTML file with everything in it, for a browser on a desk or a phone, online or not."""

from pathlib import Path

from fedhq_lightning.files import write_atomically
from fedhq_lightning.reporting.allocation_section import boundary_section
from fedhq_lightning.reporting.history import load_run
from fedhq_lightning.reporting.page import page
from fedhq_lightning.reporting.sections import (
    allocation_section,
    course_section,
    header_section,
    recipe_section,
    summary_section,
)


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder, from what is in it.

    The same files give the same bytes. A report that is there already is replaced whole, never left half written.

    Args:
        run_dir: The run's folder.

    Returns:
        Path of the report.

    Raises:
        ConfigurationError: `summary.json` or `rounds.jsonl` is missing or damaged.
    """
    run = load_run(run_dir)
    title = " ".join(str(part) for part in (run.summary.get("recipe"), run.name) if part)
    sections = (header_section, course_section, boundary_section, allocation_section, summary_section, recipe_section)
    body = [text for section in sections if (text := section(run))]
    path = run_dir / "report.html"
    write_atomically(path, page(f"{title}: report", "\n".join(body)))
    return path
