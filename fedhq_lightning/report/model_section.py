"""The report's section on the deployable model: accuracy on each class, and int8 inference beside float32."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedhq_lightning.deploy.written_file import Agreement
from fedhq_lightning.report.formats import file_sizes, format_bytes, format_metric, format_seconds, speed_text
from fedhq_lightning.report.model_figures import classes_svg, latency_svg, sizes_svg
from fedhq_lightning.report.page import figure, figures, folded, section, table
from fedhq_lightning.run.run import Run

_MOST_CLASSES = 30
_LONGEST_LABEL = 16
_INFERENCE_HEADER = ("batch size", "form", "wall ms", "quartiles", "repetitions")
_AGREEMENT = ("samples", "bit_equal", "same_argmax", "largest_difference")


def model_section(run: Run) -> str:
    """What is known of the deployed model beyond its metric; empty where nothing is."""
    pictures, tables = _classes(run)
    if (inference := run.summary.get("inference")) and inference.get("batch_sizes"):
        pictures += [_sizes(run, inference), _latency(run, inference)]
        tables.append(_inference_table(inference))
    if files := run.summary.get("files"):
        tables.insert(0, _files_table(files))
    if not pictures and not tables:
        return ""
    return section("The deployable model", f"{figures(pictures)}\n" + "\n".join(tables))


def _classes(run: Run) -> tuple[list[str], list[str]]:
    told: Mapping[str, Any] = run.summary.get("per_class") or {}
    names, fp, quantized = told.get("classes"), told.get("fp"), told.get("quantized")
    if not names or not fp:
        return [], []
    examples: Sequence[int | None] = told.get("examples") or [None] * len(names)
    changes = [_change(fp[row], None if quantized is None else quantized[row]) for row in range(len(names))]
    chosen = sorted(range(len(names)), key=lambda row: -abs(changes[row] or 0.0))[:_MOST_CLASSES]
    kept = sorted(chosen)
    labels = [_label(names[row], examples[row]) for row in kept]
    note = _classes_note(names, fp, quantized, changes)
    if len(kept) < len(names):
        note += f" The {len(kept)} classes that quantization changes most, of {len(names):,}."
    svg = classes_svg(
        "classes",
        f"Dots: accuracy on each class, of the fp and of the quantized model. {note}",
        labels,
        [fp[row] for row in kept],
        None if quantized is None else [quantized[row] for row in kept],
    )
    rows = [
        (
            str(names[row]),
            "-" if examples[row] is None else f"{examples[row]:,}",
            "-" if quantized is None else _accuracy(quantized[row]),
            _accuracy(fp[row]),
            "-" if changes[row] is None else f"{changes[row]:+.4f}",
        )
        for row in range(len(names))
    ]
    header = ("class", "held-out examples", "quantized", "fp", "quantized - fp")
    title = "Accuracy on each class"
    return [figure(title, note, svg)], [folded("Every class", table(title, header, rows))]


def _classes_note(
    names: Sequence[Any], fp: Sequence[Any], quantized: Sequence[Any] | None, changes: Sequence[float | None]
) -> str:
    """The class that is told worst, and the one that quantization harms most."""
    model, values = ("fp", fp) if quantized is None else ("quantized", quantized)
    known = [row for row in range(len(names)) if values[row] is not None]
    note = "On the held-out examples of the best round."
    if known:
        worst = min(known, key=lambda row: values[row])
        note += f" Worst, {model}: class {names[worst]}, {_accuracy(values[worst])}."
    harmed = min((row for row in known if changes[row] is not None), key=lambda row: changes[row] or 0.0, default=None)
    if harmed is not None:
        change = changes[harmed] or 0.0
        what = f"class {names[harmed]}, {change:+.4f}" if change < 0 else "none"
        note += f" Harmed most by quantization: {what}."
    return note


def _change(fp: float | None, quantized: float | None) -> float | None:
    return None if fp is None or quantized is None else quantized - fp


def _accuracy(value: float | None) -> str:
    return "no example" if value is None else format_metric(value)


def _label(name: Any, count: int | None) -> str:
    text = str(name)
    short = text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"
    return short if count is None else f"{short} (n={count:,})"


def _latency(run: Run, inference: Mapping[str, Any]) -> str:
    batches: Mapping[str, Mapping[str, Any]] = inference["batch_sizes"]
    threads = inference.get("threads")
    note = f"Wall time on this host's CPU, {threads} {'thread' if threads == 1 else 'threads'}. "
    note += " ".join(f"Batch of {size}: {_fastest(measured)}" for size, measured in batches.items())
    if slow := [size for size, measured in batches.items() if _speedup(measured) <= 1]:
        note += f" Int8 does not pay in time here for a batch of {' and of '.join(slow)}."
    note += f" {run.metric_name}: quantized {format_metric(run.summary.get('metric_quantized'))}, "
    note += f"fp {format_metric(run.summary.get('metric_fp'))}. Medians of one forward, with quartiles."
    forms = {size: _forms(measured) for size, measured in batches.items()}
    svg = latency_svg("latency", f"Bars: wall time of one forward, of float32 and of each file. {note}", forms)
    return figure("Inference time, wall", note, svg)


def _forms(measured: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Times by form; a run of 0.2 has one of float32 and one of `model.pt2`."""
    if forms := measured.get("forms"):
        return dict(forms)
    found = dict[str, Mapping[str, Any]]()
    for kind, name in (("fp32", "fp32 in torch"), ("int8", "model.pt2")):
        median = measured[f"{kind}_ms"]
        found[name] = {"ms": median, "ms_quartiles": measured.get(f"{kind}_ms_quartiles") or (median, median)}
    return found


def _fastest(measured: Mapping[str, Any]) -> str:
    """Which file is fastest, beside the fastest float32."""
    fp32, int8 = (format_seconds(float(measured[f"{kind}_ms"]) / 1e3) for kind in ("fp32", "int8"))
    file, rival = measured.get("int8", "model.pt2"), measured.get("fp32", "fp32 in torch")
    return f"{file} is fastest, {int8}: {speed_text(_speedup(measured))} as {rival}, {fp32}."


def _speedup(measured: Mapping[str, Any]) -> float:
    return float(measured.get("speedup") or measured["fp32_ms"] / measured["int8_ms"])


def _sizes(run: Run, inference: Mapping[str, Any]) -> str:
    sizes = {"float32 weights": inference.get("fp32_bytes"), **file_sizes(run.summary)}
    sizes["packed weights"] = inference.get("packed_bytes")
    known = {label: int(count) for label, count in sizes.items() if count}
    said = ", ".join(f"{label} {format_bytes(count)}" for label, count in known.items())
    note = f"{said[:1].upper()}{said[1:]}. A file holds the program too. model.pt2 has integers as whole bytes;"
    note += f" packed is what the weights take at {run.summary.get('scheme')}, scales included."
    return figure("Size", note, sizes_svg("sizes", f"Bars: size of the model. {note}", known))


def _inference_table(inference: Mapping[str, Any]) -> str:
    rows = []
    for size, measured in inference["batch_sizes"].items():
        for name, each in _forms(measured).items():
            low, high = each["ms_quartiles"]
            repetitions = str(measured.get("repetitions", "-"))
            rows.append((size, name, f"{each['ms']:.3g}", f"{low:.3g} to {high:.3g}", repetitions))
    caption = "Wall milliseconds of one forward of the whole batch"
    return folded("Every inference time", table(caption, _INFERENCE_HEADER, rows))


def _files_table(files: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for file in files:
        agreement = file.get("agreement")
        told = "-" if agreement is None else Agreement(**{key: agreement.get(key) for key in _AGREEMENT}).in_words()
        size = "not written" if file.get("bytes") is None else format_bytes(file["bytes"])
        rows.append((file["name"], str(file.get("runtime", "-")), size, str(file.get("reason") or told)))
    return table("Files of the deployed model", ("file", "runs with", "size", "beside the training-time model"), rows)
