"""What `fedhq profile` shows: a table on a terminal, aligned text elsewhere."""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedhq_lightning.profiling.host_profile import (
    LANE_MODES,
    NOTABLE,
    HostProfile,
    LayerKernels,
    LayerProfile,
    disagreements,
)
from fedhq_lightning.profiling.timing import Timing
from fedhq_lightning.report.final_table import aligned, on_terminal
from fedhq_lightning.report.formats import MODE_NAMES, format_seconds
from fedhq_lightning.support.terminal import Terminal

_PERCENT = f"{NOTABLE - 1:.0%}".replace("%", " %")
_KERNELS = (("ptq", "int8"), ("ptq", "auto"), ("ptq", "fp"), ("qat", "int8"), ("qat", "auto"), ("qat", "fake"))
_LEGEND = (
    "[ ] the static rule's choice, * the fastest of its mode; QAT auto: fused fake quantization, where integers do not "
    "pay by the rule"
)
_STEP_TITLE = "Whole training step: forward, loss, backward, optimizer; ms, and speed with fp = 1"
_PREDICTION_TITLE = "Whole training step, predicted by the model behind the virtual clock for this host; ms, and off by"
_STEPS = {
    "ptq": MODE_NAMES["ptq"],
    "qat": MODE_NAMES["qat"],
    "qat fake": "QAT, kernel fake",
    "ptq recipe": "PTQ, as the recipe has it",
    "qat recipe": "QAT, as the recipe has it",
    "ptq measured": "PTQ, fastest kernels",
    "qat measured": "QAT, fastest kernels",
}


def heading(profile: HostProfile, recipe: str) -> str:
    """What was measured, where and how."""
    threads = f"{profile.threads} thread{'s' if profile.threads > 1 else ''}"
    return (
        f"{recipe}, {profile.scheme}: measured wall times of this host ({profile.device}, {threads}), one batch of "
        f"client {profile.client_id}, {profile.batch_size} examples; medians of blocks that take turns, ratios paired "
        f"by turn; first calls, with compilation, took {format_seconds(profile.warm_up_seconds)} more"
    )


def layer_rows(profile: HostProfile) -> list[tuple[str, ...]]:
    """Header and one row a layer: milliseconds of forward and backward in one step, by kernel."""
    kernels = [key for key in _KERNELS if any(key in layer.timings for layer in profile.layers)]
    header = (
        "layer",
        "input",
        *(f"{MODE_NAMES[mode]} {kernel}" for mode, kernel in kernels),
        f"over {_PERCENT} faster",
    )
    rows = [
        (layer.name, _shapes(layer), *(_cell(layer, *key) for key in kernels), _disagreement(layer))
        for layer in profile.layers
    ]
    return [header, *rows]


def step_rows(steps: Mapping[str, Timing]) -> list[tuple[str, str, str]]:
    """One row a lane: its name, milliseconds, and how many of its steps fit into one of fp."""
    return [
        (_STEPS.get(lane, lane), _milliseconds(timing.seconds), f"{timing.speed_over(steps['fp']):.2f}x")
        for lane, timing in steps.items()
    ]


def prediction_rows(profile: HostProfile) -> list[tuple[str, str, str, str]]:
    """Header and one row a lane: measured and predicted milliseconds."""
    rows = [("lane", "measured", "shipped calibration", "fitted here")]
    for lane, each in profile.predicted.items():
        seconds = profile.steps[lane].seconds
        shipped, fitted = (
            f"{_milliseconds(s)} ({s / seconds - 1:+.0%})" for s in (each.shipped_seconds, each.fitted_seconds)
        )
        rows.append((_STEPS.get(lane, lane), _milliseconds(seconds), shipped, fitted))
    return rows


def prediction_notes(profile: HostProfile) -> list[str]:
    """The host's figures, and what was in the fit."""
    host = profile.host
    if host is None:
        return []
    peaks = {
        "fp32": host.fp32_flops_per_second,
        "bf16": host.bf16_flops_per_second,
        "int8": host.int8_flops_per_second,
    }
    shown = [f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items() if peak is not None]
    return [
        f"this host as a device: {', '.join(shown)}, copy {host.memory_bytes_per_second / 1e9:.1f} GB/s, "
        f"{host.operator_seconds * 1e6:.1f} us an operator; in the fit: the layers above and the step of fp, no other"
    ]


def closing(profile: HostProfile) -> str:
    """One sentence: what `--write` changes, and what it leaves although single layers disagree."""
    frozen, found = profile.layer_kernels, disagreements(profile.layers)
    rest = {mode: kernels for mode, kernels in found.items() if mode not in frozen}
    if frozen:
        said = f"--write freezes {_counted(frozen)}: {_listed(frozen)}"
    elif found:
        said = "--write freezes no kernel"
    else:
        said = f"--write freezes no kernel: none is more than {_PERCENT} faster than the static rule's"
    for mode, kernels in rest.items():
        demanded = profile.decided.get(mode)
        reason = (
            f"the recipe demands {MODE_NAMES[mode]} {demanded}" if demanded else "the whole step is not faster with it"
        )
        said += f"; not {_listed({mode: kernels})}, since {reason}"
    return f"{said}."


def print_profile(profile: HostProfile, recipe: str, console: Console | None = None) -> None:
    """Print all of it: tables on a terminal (NO_COLOR is respected), plain aligned text elsewhere."""
    console = console or Terminal()
    if on_terminal(console):
        console.print(_tables(profile, recipe))
    else:
        console.print(profile_text(profile, recipe), markup=False, highlight=False, emoji=False, soft_wrap=True)


def profile_text(profile: HostProfile, recipe: str) -> str:
    """All of it as aligned plain text."""
    lines = [heading(profile, recipe), *aligned(layer_rows(profile), 2), _LEGEND, *_not_called(profile)]
    lines += [_STEP_TITLE, *aligned(step_rows(profile.steps), 1)]
    if profile.predicted:
        lines += [_PREDICTION_TITLE, *aligned(prediction_rows(profile), 1), *prediction_notes(profile)]
    lines.append(closing(profile))
    return "\n".join(lines)


def _tables(profile: HostProfile, recipe: str) -> RenderableType:
    header, *rows = layer_rows(profile)
    layers = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in header:
        justify: Literal["left", "right"] = "right" if name.startswith(("PTQ", "QAT")) else "left"
        # Kernels below their mode, or seven columns do not fit a terminal.
        layers.add_column(name.replace(" ", "\n", 1), justify=justify, overflow="fold")
    for row in rows:
        layers.add_row(*(Text(cell, style=_style(cell, index, len(row))) for index, cell in enumerate(row)))
    steps = Table(box=box.SIMPLE, show_header=False, show_edge=False, padding=(0, 1, 0, 0))
    steps.add_column()
    steps.add_column(justify="right")
    steps.add_column(justify="right", style="bold")
    for step in step_rows(profile.steps):
        steps.add_row(*map(Text, step))
    predictions: list[RenderableType] = []
    if profile.predicted:
        table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
        first, *others = prediction_rows(profile)
        for index, name in enumerate(first):
            table.add_column(name, justify="right" if index else "left")
        for prediction in others:
            table.add_row(*map(Text, prediction))
        predictions = [Text(_PREDICTION_TITLE), table]
        predictions += [Text(line, style="dim") for line in prediction_notes(profile)]
    notes = [Text(line, style="dim") for line in (_LEGEND, *_not_called(profile))]
    above: list[RenderableType] = [Text(heading(profile, recipe)), layers, *notes, Text(_STEP_TITLE), steps]
    return Group(*above, *predictions, Text(closing(profile)))


def _style(cell: str, index: int, count: int) -> str:
    if index == count - 1:
        return "yellow"
    return "bold green" if index > 1 and cell.endswith("*") else ""


def _cell(layer: LayerProfile, mode: str, kernel: str) -> str:
    timing = layer.timings.get((mode, kernel))
    if timing is None:
        return "-"
    figure = _milliseconds(timing.seconds)
    marked = f"[{figure}]" if layer.rule[mode] == kernel else figure
    return f"{marked}{'*' if layer.fastest(mode) == kernel else ''}"


def _disagreement(layer: LayerProfile) -> str:
    return ", ".join(
        f"{MODE_NAMES[mode]} {layer.fastest(mode)} {layer.gain(mode):.2f}x"
        for mode in LANE_MODES
        if layer.gain(mode) > NOTABLE
    )


def _shapes(layer: LayerProfile) -> str:
    counts = Counter("x".join(map(str, shape)) for shape in layer.shapes)
    words = [shape if count == 1 else f"{count} times {shape}" for shape, count in counts.items()]
    return ", ".join(words[:2]) + (", ..." if len(words) > 2 else "")


def _not_called(profile: HostProfile) -> list[str]:
    if not profile.not_called:
        return []
    return [f"not called as layers in this step, so not measured: {', '.join(profile.not_called)}"]


def _milliseconds(seconds: float) -> str:
    # Three digits, without an exponent for what takes seconds.
    return f"{1e3 * seconds:.0f}" if seconds >= 1 else f"{1e3 * seconds:#.3g}".rstrip(".")


def _counted(kernels: LayerKernels) -> str:
    count = sum(map(len, kernels.values()))
    return f"{count} kernel{'s' if count > 1 else ''}"


def _listed(kernels: LayerKernels) -> str:
    parts = []
    for mode, chosen in kernels.items():
        for kernel in dict.fromkeys(chosen.values()):
            names = [name for name, each in chosen.items() if each == kernel]
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            parts.append(f"{MODE_NAMES[mode]} {kernel} in {shown}")
    return "; ".join(parts)
