"""Cells without runs."""

from collections.abc import Sequence
from dataclasses import replace

from fedhq_lightning.experiments.cells import Cell


def made_cell(
    allocator: str, seed: int, seconds: float, metrics: Sequence[float | None], larger_is_better: bool = True
) -> Cell:
    """A run whose rounds all take as long; `metrics` from round 0 on."""
    count = len(metrics)
    per_round = [0.0] + [seconds] * (count - 1)
    total = [seconds * number for number in range(count)]
    qat = 2 if "qat" in allocator else 0
    return Cell(
        allocator,
        seed,
        f"{allocator}-{seed}",
        {},
        "val_accuracy",
        larger_is_better,
        {
            "virtual_seconds": total[-1],
            "wall_seconds": total[-1] / 10,
            "uplink_bytes": 1000 * (count - 1),
            "downlink_bytes": 4000 * (count - 1),
        },
        {
            "round": list(range(count)),
            "metric_quantized": list(metrics),
            "metric_fp": [None if each is None else each + 0.01 for each in metrics],
            "virtual_seconds": per_round,
            "total_virtual_seconds": total,
            "total_wall_seconds": [each / 10 for each in total],
            "fit_wall_seconds": [each / 20 for each in per_round],
            "uplink_bytes": [0] + [1000] * (count - 1),
            "downlink_bytes": [0] + [4000] * (count - 1),
            "fp": [0] * count,
            "ptq": [0] + [2 - qat] * (count - 1),
            "qat": [0] + [qat] * (count - 1),
        },
        ["device"],
        [],
    )


def deployed(cell: Cell) -> Cell:
    """The same, whose last round was deployed."""
    return replace(cell, summary={**cell.summary, "metric_quantized": cell.rounds["metric_quantized"][-1]})
