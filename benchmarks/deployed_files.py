"""What the files of a deployed model take beside float32: wall time of one forward, bytes, and how they agree.

    python benchmarks/deployed_files.py                # some minutes; prints the tables, writes its page
    python benchmarks/deployed_files.py --formats onnx executorch   # without AOTInductor, which compiles for minutes
    python benchmarks/deployed_files.py --models MLP   # one model; prints only

Every file of `trainer.export` whose runtime is installed, `model.pt2` and the packed weights, of models with random
weights: neither time nor size depends on what a model has learned. Forms are timed in turns, so that whatever else the
machine does meets all of them.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import lightning as L
import machine
import results
import torch
from torch import nn

from fedhq_lightning.deploy.deployment import Deployment
from fedhq_lightning.deploy.formats import FORMATS, float_forms
from fedhq_lightning.deploy.model_folder import PROGRAM, write_model_folder
from fedhq_lightning.deploy.speed import measure_inference
from fedhq_lightning.models import MLP, LeNet5, MobileNetV2, ResNet20, ViT
from fedhq_lightning.quantize import QuantScheme, calibrate_ranges, convert
from fedhq_lightning.report.formats import format_bytes, speed_text

TEXT = """## Files of the deployed model

Wall milliseconds of one forward, on one thread: medians of {rounds} rounds, each a median of up to 40 forwards, all
forms in turns. Images of 28 x 28, scheme `{scheme}`, edges at 8 bits; *static* is the same with static activation
ranges (`{scheme}s`). *Agreement* is with the training-time integer model, on {batch} samples. The fastest float32 form
and the fastest file are in bold. Printed by `{command}`.

{machine}

{tables}

{verdict}
"""


def with_batch_norm(module: nn.Module) -> nn.Module:
    """The same with BatchNorm in place of GroupNorm, its statistics as of some training."""
    generator = torch.Generator().manual_seed(1)
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            norm = nn.BatchNorm2d(child.num_channels)
            mean, spread = torch.rand(2, child.num_channels, generator=generator)
            norm.running_mean, norm.running_var = mean / 5 - 0.1, spread + 0.5
            setattr(module, name, norm)
        else:
            with_batch_norm(child)
    return module


MODELS: dict[str, Callable[[], nn.Module]] = {
    "LeNet-5": LeNet5,
    "MLP": lambda: MLP(hidden_sizes=(1024, 1024)),
    "ViT": lambda: ViT(patch_size=7, width=192, depth=4, num_heads=4),
    "ResNet-20, GroupNorm": ResNet20,
    "ResNet-20, BatchNorm": lambda: with_batch_norm(ResNet20()),
    "MobileNetV2": MobileNetV2,
}


@dataclass(frozen=True)
class Row:
    """One form of one model.

    Attributes:
        form: A file's name, or a float32 form's.
        size: Bytes of the file, or of the float32 weights.
        agreement: In words; empty for float32.
        milliseconds: By batch size; empty for what could not be written.
    """

    form: str
    size: int | None
    agreement: str
    milliseconds: Mapping[str, float]


def measure(module: nn.Module, scheme: str, batch: int, rounds: int, formats: Sequence[str]) -> list[Row]:
    """Write every file of a module and time it beside float32.

    Args:
        module: In float32; images of 28 x 28.
        scheme: Of the conversion.
        batch: Size of the larger batch.
        rounds: How often everything is timed.
        formats: Which files, of `FORMATS`.
    """
    module.eval()
    example = (torch.rand(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0)),)
    dynamic, static = (_written(module, each, example, formats) for each in (scheme, f"{scheme}s"))
    assert dynamic.model is not None
    floats = {"fp32 in torch": module, **float_forms(dynamic.model, dynamic.programs)}
    files = {file.name: file for file in dynamic.files}
    files |= {f"{file.name}, static": file for file in static.files if file.name != PROGRAM}
    programs = {name: file.program for name, file in files.items() if file.program is not None}
    measured = [measure_inference(floats, programs, example)["batch_sizes"] for _ in range(rounds)]

    def times(form: str) -> dict[str, float]:
        return {size: median(each[size]["forms"][form]["ms"] for each in measured) for size in measured[0]}

    weights = sum(value.nbytes for value in module.state_dict().values())
    rows = [Row(form, weights, "", times(form)) for form in floats]
    for name, file in files.items():
        told = file.reason if file.agreement is None else file.agreement.in_words()
        rows.append(Row(name, file.bytes, told, times(name) if name in programs else {}))
    return rows


def _written(module: nn.Module, scheme: str, example: tuple[torch.Tensor], formats: Sequence[str]) -> Deployment:
    """Every file of a module that is left as it is, static ranges calibrated on the example."""
    grid, module = QuantScheme(scheme), copy.deepcopy(module)
    calibrate_ranges(module, grid, lambda module: module(*example))
    converted = convert(module, grid)
    assert isinstance(converted, L.LightningModule)
    name = type(module).__name__
    with TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        return write_model_folder(place, converted, module.state_dict(), example, grid, name, exports=formats)


def model_table(rows: list[Row]) -> str:
    """A table of one model, the fastest of each kind in bold."""
    sizes = list(rows[0].milliseconds)
    fastest = {(size, kind): best(rows, size, kind) for size in sizes for kind in (True, False)}
    cells = []
    for row in rows:
        is_float, written = not row.agreement, "-" if row.size is None else format_bytes(row.size)
        times = [f"{row.milliseconds[size]:.3g}" if size in row.milliseconds else "-" for size in sizes]
        bold = [
            f"**{text}**" if fastest[size, is_float] is row else text for size, text in zip(sizes, times, strict=True)
        ]
        cells.append([row.form, written, *bold, row.agreement or "-"])
    return results.table(["form", "size", *(f"batch of {size}, ms" for size in sizes), "agreement"], cells)


def best(rows: list[Row], size: str, is_float: bool) -> Row:
    """The fastest float32 form, or the fastest file."""
    timed = [row for row in rows if (not row.agreement) == is_float and size in row.milliseconds]
    return min(timed, key=lambda row: row.milliseconds[size])


def verdict(found: Mapping[str, list[Row]]) -> str:
    """Where int8 pays, a line a model."""
    lines = []
    for model, rows in found.items():
        told = []
        for size in rows[0].milliseconds:
            fp32, file = best(rows, size, True), best(rows, size, False)
            speed = speed_text(fp32.milliseconds[size] / file.milliseconds[size])
            told.append(f"batch of {size}: `{file.form}` is {speed} as {fp32.form}")
        lines.append(f"- {model}: {'; '.join(told)}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--scheme", default="w4a8")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=results.PAGES / "deployed-files.md")
    parser.add_argument("--print-only", action="store_true", help="write no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in options.models:
        torch.manual_seed(0)
        found[name] = measure(MODELS[name](), options.scheme, options.batch, options.rounds, options.formats)
        print(f"{name}\n\n{model_table(found[name])}\n", flush=True)
    text = TEXT.format(
        command=" ".join(["python benchmarks/deployed_files.py", *sys.argv[1:]]),
        rounds=options.rounds,
        scheme=options.scheme,
        batch=options.batch,
        machine=machine.describe(threads=1),
        tables="\n\n".join(f"### {name}\n\n{model_table(rows)}" for name, rows in found.items()),
        verdict=verdict(found),
    )
    print(verdict(found))
    if options.models == list(MODELS) and not options.print_only:
        results.write_section("deployed_files", text, options.output)


if __name__ == "__main__":
    main()
