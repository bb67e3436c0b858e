"""The report's first and last sections: the figures that matter most, the summary, the recipe and the versions."""

import html

from fedhq_lightning.report.banner import banner
from fedhq_lightning.report.formats import (
    format_bytes,
    format_metric,
    format_seconds,
    rounds_text,
    summary_rows,
    wall_time,
)
from fedhq_lightning.report.page import listing, section, table, tiles
from fedhq_lightning.run.run import Run


def header(run: Run) -> str:
    """Title, what went wrong, and the figures that matter most."""
    summary, name = run.summary, run.metric_name
    shown = [
        (f"{name}, quantized ({summary.get('scheme') or 'no scheme'})", format_metric(summary.get("metric_quantized"))),
        (f"{name}, fp", format_metric(summary.get("metric_fp"))),
        *((label, format_seconds(seconds)) for label, seconds in [wall_time(summary)]),
        ("virtual time", format_seconds(float(summary.get("virtual_seconds", 0.0)))),
        ("bytes up", format_bytes(summary.get("uplink_bytes", 0))),
        ("rounds", rounds_text(summary)),
    ]
    recipe = html.escape(": ".join(filter(None, (run.recipe_name or "Federated run", run.given_name))))
    return (
        f"<h1>{recipe}</h1>\n<p>Run {html.escape(run.name)}. Wall time was measured on this host; virtual time is what"
        " the modelled fleet would have taken. The quantized metric is that of the deployable model.</p>\n"
        f"{banner(run)}\n{tiles(shown)}"
    )


def summary_section(run: Run) -> str:
    """`summary.json` in words."""
    rows = summary_rows(run.summary)
    return section("Summary", table("Summary of the run", ("", ""), rows, head=False, caption_shown=False))


def recipe_section(run: Run) -> str:
    """The recipe, which reruns this run."""
    return section("Recipe", listing(run.recipe, "Recipe") if run.recipe else "<p>No recipe.yaml.</p>")


def versions_section(run: Run) -> str:
    """What the run ran with."""
    versions = run.summary.get("versions") or {}
    rows = [(str(name), str(version)) for name, version in versions.items()]
    return section("Versions", table("Versions of what the run ran with", ("", ""), rows, False, caption_shown=False))
