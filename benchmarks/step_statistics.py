"""The arithmetic of benchmarks/step_time.py: ratios between lanes, targets, tables. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from results import table

BASELINE = "fp32"


@dataclass
class LaneResult:
    """What one lane of one model took.

    Attributes:
        blocks: Seconds per step, one median a round; rounds in the same order for all lanes of a model.
        warm_up_seconds: First steps, with all compilation.
        peak_bytes: Peak memory; None where it was not measured.
        error: Why there is nothing else here; empty where all went well.
    """

    blocks: list[float] = field(default_factory=list)
    warm_up_seconds: float = 0.0
    peak_bytes: int | None = None
    error: str = ""

    @property
    def seconds(self) -> float:
        """Median seconds per step over the blocks."""
        return median(self.blocks)


ModelResult = dict[str, LaneResult]
"""Lane name to result."""


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: median, smallest and largest of the rounds."""

    value: float
    smallest: float
    largest: float

    def __str__(self) -> str:
        """`2.50x [2.31, 2.64]`."""
        return f"{self.value:.2f}x [{self.smallest:.2f}, {self.largest:.2f}]"


@dataclass(frozen=True)
class Target:
    """What the project wants of a lane.

    Attributes:
        lane: The lane it is about.
        measure: "speed" against a baseline's steps (at least), or "memory" against its peak (at most).
        baselines: Lanes to compare with; the first that was measured counts.
        bound: The ratio wanted.
    """

    lane: str
    measure: Literal["speed", "memory"]
    baselines: tuple[str, ...]
    bound: float


def _targets(
    ptq: float, qat: float, onednn: float | None = None, bf16: float | None = None, memory: float | None = None
) -> list[Target]:
    """Speeds of ptq and qat against fp32, of ptq against fp32 through oneDNN and bf16 autocast; memory of both."""
    wanted = [Target("ptq", "speed", (BASELINE,), ptq), Target("qat", "speed", (BASELINE,), qat)]
    for baseline, bound in (("fp32-onednn", onednn), ("bf16", bf16)):
        if bound is not None:
            wanted.append(Target("ptq", "speed", (baseline,), bound))
    if memory is not None:
        wanted += [Target(lane, "memory", (BASELINE,), memory) for lane in ("ptq", "qat")]
    return wanted


TARGETS = {
    "mlp-1024": [*_targets(5.0, 4.2, 2.6, 1.4, 1.0), Target("qat-bf16", "speed", (BASELINE,), 3.4)],
    "vit-384": _targets(4.7, 4.4, 2.6, 1.8, 0.87),
    "resnet20-64": _targets(3.2, 2.8, bf16=1.7, memory=1.02),
    "resnet20-16": _targets(1.9, 1.9, bf16=1.5, memory=1.1),
    "lenet5": _targets(1.8, 1.7),
    "mlp-128": _targets(1.9, 1.5),
}
"""Set for processors that multiply bytes, as those with AVX512-VNNI do."""


def speed_ratio(lane: LaneResult, baseline: LaneResult) -> Ratio:
    """How many steps of `lane` fit into one of `baseline`, round by round.

    Pairs, because a machine that others use changes its speed between rounds, for all lanes alike.

    Raises:
        ValueError: Rounds that do not pair.
    """
    rounds = [theirs / ours for ours, theirs in zip(lane.blocks, baseline.blocks, strict=True)]
    return Ratio(median(rounds), min(rounds), max(rounds))


def lane_table(result: ModelResult, titles: Mapping[str, str]) -> str:
    """One row a lane: time, speed against fp32, first steps, memory against fp32."""
    base = result.get(BASELINE)
    rows = []
    for name, lane in result.items():
        if lane.error:
            rows.append([titles[name], "did not run", "", "", "", ""])
            continue
        speed = str(speed_ratio(lane, base)) if base and base.blocks else ""
        memory = "" if lane.peak_bytes is None else f"{lane.peak_bytes / 1e6:,.1f}"
        share = f"{lane.peak_bytes / base.peak_bytes:.2f}x" if base and base.peak_bytes and lane.peak_bytes else ""
        rows.append([titles[name], f"{1e3 * lane.seconds:,.2f}", speed, f"{lane.warm_up_seconds:.1f}", memory, share])
    columns = ("lane", "ms a step", "speed, fp32 = 1", "first 3 steps, s", "peak memory, MB", "memory, fp32 = 1")
    errors = [f"{titles[name]} did not run: {lane.error}" for name, lane in result.items() if lane.error]
    return "\n\n".join([table(columns, rows), *errors])


def target_rows(
    title: str, result: ModelResult, targets: Sequence[Target], titles: Mapping[str, str]
) -> list[list[str]]:
    """One row for each target whose lane and baseline were chosen; what failed counts as missed."""
    rows = []
    for target in targets:
        base_name = next((name for name in target.baselines if name in result), None)
        if target.lane not in result or base_name is None:
            continue
        wanted = f"{'>=' if target.measure == 'speed' else '<='} {target.bound:g}x"
        verdict = _verdict(target, result[target.lane], result[base_name])
        if verdict is not None:
            words = f"{titles[target.lane]}, {target.measure} against {titles[base_name]}"
            rows.append([title, words, wanted, verdict[0], "met" if verdict[1] else "**missed**"])
    return rows


def _verdict(target: Target, lane: LaneResult, base: LaneResult) -> tuple[str, bool] | None:
    """What was measured and whether it suffices; None where nobody asked for this measure."""
    if lane.error or base.error:
        return "did not run", False
    if target.measure == "speed":
        ratio = speed_ratio(lane, base)
        return str(ratio), ratio.value >= target.bound
    if lane.peak_bytes is None and base.peak_bytes is None:
        return None
    if not lane.peak_bytes or not base.peak_bytes:
        return "not measured", False
    share = lane.peak_bytes / base.peak_bytes
    return f"{share:.2f}x", share <= target.bound


def target_table(rows: Sequence[Sequence[str]]) -> str:
    """All targets, met and missed."""
    met = sum(row[-1] == "met" for row in rows)
    return f"{met} of {len(rows)} met.\n\n" + table(("model", "what", "wanted", "measured", ""), rows)
