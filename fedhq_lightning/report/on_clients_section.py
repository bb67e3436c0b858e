"""The report's section on what models do for clients, each on the examples that it holds back."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedhq_lightning.report.curve_figures import Curve, curves_svg
from fedhq_lightning.report.formats import MODE_NAMES, format_metric, format_seconds
from fedhq_lightning.report.page import figure, figures, paragraph, section, table
from fedhq_lightning.run.evaluated_clients import PREFIX, UNTRAINED
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.run.run import Run

_HEADER = ("clients", "number", "examples", "mean", "weighted mean", "worst decile", "spread", "mean, fp")


def on_clients_section(run: Run) -> str:
    """A picture over rounds, and a table of the deployed model by tier and by mode; nothing where nobody was asked."""
    told = run.summary.get("on_clients")
    if not told:
        return ""
    metric = str(told["metric_name"])
    records = [record for record in run.rounds if record.evaluation is not None]
    content = [figures([_picture(metric, records)])] if records else []
    content.append(_table(metric, told))
    if records:
        seconds = sum(record.evaluation.virtual_seconds for record in records if record.evaluation)
        content.append(
            paragraph(f"Evaluating on clients took {format_seconds(seconds)} virtual, in {len(records)} rounds.")
        )
    if tuned := run.summary.get("fine_tuning"):
        content.append(_tuned_table(tuned))
    return section("On the clients' own examples", "\n".join(content))


def _picture(metric: str, records: Sequence[RoundRecord]) -> str:
    """Mean and worst decile, of the quantized model where there is one, and the mean of the fp one."""
    view = "quantized" if any(name.startswith(f"quantized/{PREFIX}") for name in records[0].metrics) else "fp"
    wanted = [("quantized", "quantized", "mean"), ("fp", "fp", "mean"), (view, "text", "worst_decile")]
    rounds = [float(record.round) for record in records]
    curves, said = [], []
    for of, look, statistic in wanted:
        values = [record.metrics.get(f"{of}/{PREFIX}{metric}/{statistic}") for record in records]
        if any(value is not None for value in values):
            label = f"{statistic.replace('_', ' ')}, {of}"
            curves.append(Curve(label, look, rounds, values))  # type: ignore[arg-type]  # looks that there are
            said.append(f"{label} {format_metric(values[-1])}")
    note = f"At round {records[-1].round}: {'; '.join(said)}. Worst decile: the mean over the worst tenth of clients."
    title = f"{metric} over clients by round"
    description = f"Line plot: {title}. {note}"
    return figure(title, note, curves_svg("on-clients", description, curves, "round", metric))


def _table(metric: str, told: Mapping[str, Any]) -> str:
    rows = [_row("all", told)]
    rows += [_row(tier["tier"], tier) for tier in told["tiers"]]
    rows += [_row(_mode_text(mode["mode"]), mode) for mode in told["modes"]]
    view = "quantized" if told["quantized"] else "fp"
    caption = (
        f"{metric} of the deployed round's {view} model on what clients hold back; spread is the standard deviation"
    )
    if without := told.get("without"):
        caption += f". {without:,} more clients told nothing"
    return table(f"{caption}.", _HEADER, rows)


def _tuned_table(told: Mapping[str, Any]) -> str:
    view = "quantized" if told["after"]["quantized"] else "fp"
    rows = [_tuned_row("all", told, view)]
    rows += [_tuned_row(tier["tier"], tier, view) for tier in told["tiers"]]
    rows += [_tuned_row(f"tuned in {MODE_NAMES.get(mode['mode'], mode['mode'])}", mode, view) for mode in told["modes"]]
    caption = (
        f"{told['metric_name']} of each client's {view} model before → after it was fine-tuned on the client's own "
        f"examples; that took {format_seconds(told['virtual_seconds'])} virtual"
    )
    if without := told.get("without"):
        caption += f". {without:,} more clients did not train, and keep what they had"
    return table(f"{caption}.", _HEADER[:-1], rows)


def _tuned_row(name: str, told: Mapping[str, Any], view: str) -> tuple[str, ...]:
    before, after = told["before"][view] or {}, told["after"][view] or {}
    cells = (
        f"{format_metric(before.get(each))} → {format_metric(after.get(each))}"
        for each in ("mean", "weighted_mean", "worst_decile", "spread")
    )
    return name, f"{told['clients']:,}", f"{told['examples']:,}", *cells


def _mode_text(mode: str) -> str:
    return "not trained yet" if mode == UNTRAINED else f"last trained in {MODE_NAMES.get(mode, mode)}"


def _row(name: str, figures_told: Mapping[str, Any]) -> tuple[str, ...]:
    fp = figures_told["fp"] or {}
    shown = figures_told["quantized"] or fp
    cells = [shown.get(each) for each in ("mean", "weighted_mean", "worst_decile", "spread")] + [fp.get("mean")]
    texts = ("-" if value is None else format_metric(value) for value in cells)
    return name, f"{figures_told['clients']:,}", f"{figures_told['examples']:,}", *texts
