"""What silos that log from everywhere should find, from what each of them said alone."""

import math
from collections.abc import Sequence

from ..logs_everywhere import KINDS, Note, is_between_batches
from .silo_script import HELD_OUT, SIZES

_REDUCED = {"sum": sum, "min": min, "max": max}


def expected(said: Sequence[Sequence[Note]], stage: str, epoch: int) -> dict[str, float]:
    """Values of a stage by name, but for those that silos keep to themselves.

    Args:
        said: By silo, everything that it said.
        stage: "train", "validation" or "test".
        epoch: In training.
    """
    wanted: dict[str, float] = {}
    notes = [[note for note in of_silo if note.epoch == epoch] for of_silo in said]
    for who, hook, loader in sorted({(note.who, note.hook, note.loader) for each in notes for note in each}):
        if not is_of(stage, hook):
            continue
        of_hook = [[note for note in each if (note.who, note.hook) == (who, hook)] for each in notes]
        held = [[note for note in each if note.loader == loader] for each in of_hook]
        of_loaders_so_far = [[note for note in each if note.loader <= loader] for each in of_hook]
        several = stage != "train" and len(HELD_OUT[stage][0]) > 1 and not is_between_batches(hook)
        for kind in KINDS:
            name = f"{who}/{hook}/{kind}" + (f"/dataloader_idx_{loader}" if several else "")
            # As in Lightning, a torchmetrics object that is logged of several loaders goes on from one to the next.
            wanted[name] = _value(kind, stage, hook, of_loaders_so_far if kind == "metric" else held)
    return wanted


def is_of(stage: str, hook: str) -> bool:
    """Whether a hook belongs to a stage."""
    if stage == "train":
        return "validation" not in hook and "test" not in hook
    return stage in hook


def last_of(said: Sequence[Note], hook: str, epoch: int) -> float:
    """What one silo said last."""
    return [note.value for note in said if (note.who, note.hook, note.epoch) == ("module", hook, epoch)][-1]


def _value(kind: str, stage: str, hook: str, held: Sequence[Sequence[Note]]) -> float:
    if kind == "only_on_last":
        held = [[], held[-1]]
    if kind == "rank_zero_only":
        held = [held[0], []]
    values = [note.value for each in held for note in each]
    if kind in _REDUCED:
        return float(_REDUCED[kind](values))
    weights = [_weight(kind, stage, hook, silo, note) for silo, each in enumerate(held) for note in each]
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _weight(kind: str, stage: str, hook: str, silo: int, note: Note) -> int:
    """Examples: of the batch; of all batches after the last; unknown before the first, where all count alike."""
    if kind in ("weighted", "metric") or (hook.endswith("start") and not note.size):
        return 1
    if note.size:
        return note.size
    return SIZES[silo] if stage == "train" else sum(HELD_OUT[stage][silo])
