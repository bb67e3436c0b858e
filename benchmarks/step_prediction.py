"""Predicted against measured step times on this host: models times lanes.

    python benchmarks/step_prediction.py          # judge the shipped calibration on the models of step_cases.py
    python benchmarks/step_prediction.py --fit    # fit it anew first, on other models, and write it

The judged models are never in the fit. One core: `taskset -c 0`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import machine
import rank_correlation
import results
import torch
import yaml
from rank_correlation import vector
from step_cases import LANES, MODELS, SCHEME, SEED_OF_WEIGHTS, Lane, Model, build_step
from torch.nn import functional

from fedhq_lightning.devices.calibration import PLAIN, Calibration, shipped_calibration
from fedhq_lightning.devices.calibration_fit import Observation, fit
from fedhq_lightning.devices.device_profile import shipped_file
from fedhq_lightning.devices.lane_kernels import LaneKernels
from fedhq_lightning.devices.layer_costs import measure_costs
from fedhq_lightning.models import MLP, LeNet5, ResNet20, ViT
from fedhq_lightning.profiling.host_device import HostDevice, measure_host, repeated
from fedhq_lightning.profiling.timing import Clock, time_in_turns
from fedhq_lightning.quantize import LaneOptions
from fedhq_lightning.support.memory import keep_freed_memory
from fedhq_lightning.types import Mode

FIT_MODELS = {
    "mlp-64": Model("MLP 2x64, batch 16", lambda: MLP(hidden_sizes=(64, 64)), (16, 1, 28, 28), False),
    "mlp-256": Model("MLP 1x256, batch 64", lambda: MLP(hidden_sizes=(256,)), (64, 1, 28, 28), False),
    "mlp-512": Model("MLP 2x512, batch 128", lambda: MLP(hidden_sizes=(512, 512)), (128, 1, 28, 28), False),
    "mlp-2048": Model("MLP 2x2048, batch 64", lambda: MLP(hidden_sizes=(2048, 2048)), (64, 1, 28, 28), False),
    "vit-64": Model("ViT d=64 L=2, 16 tokens, batch 32", lambda: ViT(depth=2), (32, 1, 28, 28), False),
    "vit-192": Model(
        "ViT d=192 L=3, 49 tokens, batch 32",
        lambda: ViT(patch_size=4, width=192, depth=3, num_heads=3),
        (32, 1, 28, 28),
        False,
    ),
    "resnet20-8": Model("ResNet-20 width 8, 32x32, batch 16", lambda: ResNet20(3, width=8), (16, 3, 32, 32), True),
    "resnet20-32": Model("ResNet-20 width 32, 28x28, batch 32", lambda: ResNet20(1, width=32), (32, 1, 28, 28), True),
    "resnet20-48": Model("ResNet-20 width 48, 32x32, batch 16", lambda: ResNet20(3, width=48), (16, 3, 32, 32), True),
    "lenet5-32": Model("LeNet-5, 3x32x32, batch 64", lambda: LeNet5(3, 32), (64, 3, 32, 32), True),
}
LANE_MODES: dict[str, tuple[Lane, Mode, LaneOptions]] = {
    "fp": (Lane("fp"), "fp", LaneOptions()),
    "ptq": (LANES["ptq"], "ptq", LaneOptions()),
    "qat": (LANES["qat"], "qat", LaneOptions()),
    "qat bf16": (LANES["qat-bf16"], "qat", LaneOptions(qat_backward="bf16")),
    "qat fake": (LANES["qat-fake"], "qat", LaneOptions(qat_kernel="fake")),
}
# Where few models tell two factors apart, traffic and overhead of one kernel, the fit stays near here: what the lanes'
# eager operators and calls of compiled kernels are, counted in their code.
START = replace(
    PLAIN,
    float_operators=3.0,
    ptq_int8_operators=40.0,
    qat_int8_operators=40.0,
    fused_operators=40.0,
    fake_operators=100.0,
)
WEIGHT = 0.15
COLUMNS = ("model", "lane", "measured", "predicted", "predicted / measured")
BLOCK_SECONDS = 0.03
ROUNDS = 15
TEXT = """
## Step times: predicted and measured

A training step's time on this host by the model behind the virtual clock (`fedhq_lightning/devices/roofline.py`),
and as measured: forward, loss, backward, fused SGD with momentum; scheme w4a8, fp32; the fastest of {rounds} blocks
that take turns, in ms of processor time of the one thread that runs, so that others on the machine count less. The
model gets the layers of the module as counted on one batch, six figures of this host that are measured in two seconds
(below), and the shipped calibration (`fedhq_lightning/devices/calibration.yaml`). The calibration was fitted to other
models than these: {fitted}. It was fitted on the type of machine that its file names, so this says how well the model
carries over to other networks, not to other machines.

Printed by `{command}` in {seconds:.0f} s.

{machine}
- host: fp32 {fp32:.0f} GFLOP/s (plain matrix products {linear:.2f} times as slow), bf16 {bf16}, int8 {int8}, copy
  {copy:.1f} GB/s, operator {operator:.1f} us

{table}

| over all {count} pairs | figure | target |
| --- | --- | --- |
| Spearman | {spearman:.3f} | >= 0.9 |
| median relative error | {error:.0%} | <= 25% |
| largest relative error | {largest:.0%} | |
| the same without calibration: Spearman, median error | {plain_spearman:.3f}, {plain_error:.0%} | |
| ratio qat / ptq within a model: median relative error | {ratio_error:.0%} | |
"""


@dataclass(frozen=True)
class Point:
    """One model in one lane."""

    model: str
    lane: str
    observation: Observation

    def error(self, calibration: Calibration) -> float:
        """Relative to what was measured."""
        return abs(self.observation.predicted(calibration) / self.observation.seconds - 1)


def main() -> None:
    """Measure, fit if asked, print, write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the shipped calibration anew and write it")
    parser.add_argument("--output", type=Path, default=results.PAGES / "step-prediction.md")
    parser.add_argument("--print-only", action="store_true", help="write no results; --fit writes all the same")
    options = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)
    keep_freed_memory()  # as FederatedTrainer does
    described = machine.describe(1)
    host = measure_host(torch.device("cpu"), clock=ProcessorClock)
    command = " ".join(["python benchmarks/step_prediction.py", *sys.argv[1:]])
    calibration = shipped_calibration()
    if options.fit:
        calibration = fit([each.observation for each in points(FIT_MODELS, host)], START, WEIGHT)
        write_calibration(calibration, command, described)
    judged = points(MODELS, host)
    text = TEXT.format(
        rounds=ROUNDS,
        fitted="; ".join(model.title for model in FIT_MODELS.values()),
        command=command,
        seconds=time.perf_counter() - started,
        machine=described,
        fp32=host.profile.fp32_flops_per_second / 1e9,
        bf16=_peak(host.profile.bf16_flops_per_second),
        int8=_peak(host.profile.int8_flops_per_second),
        copy=host.profile.memory_bytes_per_second / 1e9,
        linear=host.linear_slowdown,
        operator=host.profile.operator_seconds * 1e6,
        table=results.table(COLUMNS, rows(judged, calibration)),
        count=len(judged),
        spearman=spearman(judged, calibration),
        error=median(each.error(calibration) for each in judged),
        largest=max(each.error(calibration) for each in judged),
        plain_spearman=spearman(judged, PLAIN),
        plain_error=median(each.error(PLAIN) for each in judged),
        ratio_error=median(ratio_errors(judged, calibration)),
    )
    print(text)
    if not options.print_only:
        results.write_section("step_prediction", text, options.output)


def points(models: Mapping[str, Model], host: HostDevice) -> list[Point]:
    """Measure every lane of every model."""
    device, found = torch.device("cpu"), list[Point]()
    for model in models.values():
        steps = {name: build_step(model, lane, device) for name, (lane, _, _) in LANE_MODES.items()}
        works = {name: repeated(device, step, ProcessorClock) for name, step in steps.items()}
        timings = time_in_turns(works, BLOCK_SECONDS, ROUNDS)
        seconds = {name: min(timing.blocks) for name, timing in timings.items()}
        found += [Point(model.title, name, each) for name, each in observations(model, host, seconds).items()]
        print(model.title, {name: f"{1e3 * each:.3g} ms" for name, each in seconds.items()}, flush=True)
    return found


def observations(model: Model, host: HostDevice, seconds: Mapping[str, float]) -> dict[str, Observation]:
    """What the analysis knows of a model, beside what its lanes took."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED_OF_WEIGHTS)
        module = model.build()
        images, labels = torch.randn(model.input_shape), torch.randint(10, model.input_shape[:1])
    grids = SCHEME.for_layers(module)
    quantized = {name: grid.activation_bits is not None for name, grid in grids.items()}
    costs = measure_costs(lambda: functional.cross_entropy(module(images), labels), module, quantized)
    return {
        name: Observation(
            *(host.profile, mode, costs, LaneKernels.of(module, grids, lanes), seconds[name]),
            linear_slowdown=host.linear_slowdown,
        )
        for name, (_, mode, lanes) in LANE_MODES.items()
    }


def rows(judged: Sequence[Point], calibration: Calibration) -> list[list[str]]:
    """Cells of the table."""
    cells = []
    for each in judged:
        seconds, predicted = each.observation.seconds, each.observation.predicted(calibration)
        figures = [f"{1e3 * seconds:.3g}", f"{1e3 * predicted:.3g}", f"{predicted / seconds:.2f}"]
        cells.append([each.model, each.lane, *figures])
    return cells


def spearman(judged: Sequence[Point], calibration: Calibration) -> float:
    """Rank correlation of predicted and measured seconds."""
    predicted = vector([each.observation.predicted(calibration) for each in judged])
    return float(rank_correlation.spearman(predicted, vector([each.observation.seconds for each in judged])))


def ratio_errors(judged: Sequence[Point], calibration: Calibration) -> list[float]:
    """Relative error of QAT's time over PTQ's, what an allocator goes by, one figure a model."""
    by_key = {(each.model, each.lane): each.observation for each in judged}
    errors = []
    for model in dict.fromkeys(each.model for each in judged):
        ptq, qat = by_key[model, "ptq"], by_key[model, "qat"]
        predicted = qat.predicted(calibration) / ptq.predicted(calibration)
        errors.append(abs(predicted / (qat.seconds / ptq.seconds) - 1))
    return errors


def write_calibration(calibration: Calibration, command: str, described: str) -> None:
    """Put factors where the package ships them."""
    head = [
        "Factors on the terms of the roofline, the same for every device (see devices/calibration.py).",
        f"Fitted by `{command}` to steps of {len(FIT_MODELS)} models in {len(LANE_MODES)} lanes on:",
        *(f"  {line.removeprefix('- ')}" for line in described.splitlines()),
        "Measured on one processor: for other devices they are an assumption.",
    ]
    factors = {name: float(f"{value:.4g}") for name, value in asdict(calibration).items()}
    text = "".join(f"# {line}\n" for line in head) + yaml.safe_dump({"factors": factors}, sort_keys=False)
    Path(str(shipped_file("calibration"))).write_text(text, encoding="utf-8")


class ProcessorClock(Clock):
    """Seconds that this process had a processor: what a quiet machine's wall clock would say, with one thread."""

    def _now(self) -> float:
        return time.process_time()


def _peak(flops: float | None) -> str:
    return "none" if flops is None else f"{flops / 1e9:.0f} GFLOP/s"


if __name__ == "__main__":
    main()
