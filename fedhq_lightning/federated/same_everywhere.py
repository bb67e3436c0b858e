"""Before round 1: that every process was given the same, for each trains a share of the same run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.clients import num_examples
from fedhq_lightning.federated.resume import Resumed
from fedhq_lightning.recipe.identity import TRAINER_SETTINGS_THAT_CHANGE_NO_BIT, changes, fingerprint, without_free
from fedhq_lightning.run.summary import versions
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.notes import noted
from fedhq_lightning.support.seeds import generators_kept
from fedhq_lightning.types import ClientId

_MOST_SIZES = 1000
_MOST_LABELS = 100
_MOST_BATCHES = 3
_FREE = frozenset(f"{part}trainer.{name}" for part in ("", "recipe.") for name in TRAINER_SETTINGS_THAT_CHANGE_NO_BIT)


def check_same_everywhere(
    processes: Processes,
    described: Mapping[str, Any],
    datamodule: FederatedDataModule,
    looked_at: Sequence[ClientId],
    resumed: Resumed | None,
) -> None:
    """Compare with the first process: settings, versions, where the run stands, and a sample of the data.

    Of the data, however many clients there are: the ids of those who stand for all, the sizes of 1,000, the labels of
    100, the first batches of 3.

    Args:
        processes: All.
        described: The run's settings as plain values.
        datamodule: The clients' data, set up.
        looked_at: Clients that hold examples; of many a sample, evenly over all.
        resumed: Where a run stood that is gone on with.

    Raises:
        ConfigurationError: A process was given something else; the first difference is named.
    """
    if processes.count == 1:
        return
    settings, done = without_free(described), 0 if resumed is None else resumed.state.round
    if "recipe" in settings:
        settings["recipe"] = without_free(settings["recipe"])
    of_each = processes.gather([fingerprint(settings), versions(), done])
    if len({each[0] for each in of_each}) > 1:
        whole = processes.gather(settings)
        for rank, other in enumerate(whole):
            for change in changes(whole[0], other, _FREE):
                _refuse(rank, change.name, change.before, change.now)
    for rank, (_, packages, rounds) in enumerate(of_each):
        for name, there in packages.items():
            _compare(rank, f"the version of {name}", of_each[0][1].get(name), there)
        _compare(rank, "the number of rounds done", of_each[0][2], rounds)
    seen = processes.gather(_sample(datamodule, looked_at))
    for rank, there in enumerate(seen):
        for (what, first), (_, value) in zip(seen[0], there, strict=False):
            _compare(rank, what, first, value)


def check_shared_folder(processes: Processes, folder: Path) -> None:
    """Refuse nodes of which one does not see what the others write of clients, which it may train next.

    Args:
        processes: All.
        folder: That process 0 has made.

    Raises:
        ConfigurationError: A process does not see it.
    """
    for rank, sees in enumerate(processes.gather(folder.is_dir())):
        if not sees:
            raise ConfigurationError(
                f"process {rank} does not see {folder}, where clients keep what they keep from round to round; set "
                "trainer.default_root_dir to a folder that all nodes share, by its whole path"
            )


def _compare(rank: int, what: str, first: Any, there: Any) -> None:
    if first != there:
        _refuse(rank, what, first, there)


def _refuse(rank: int, what: str, first: Any, there: Any) -> None:
    raise ConfigurationError(
        f"process {rank} was given something else than process 0: {what} is {there!r} there, {first!r} in process 0; "
        "every process needs the same program, packages and data, and trains a share of the clients"
    )


def _sample(datamodule: FederatedDataModule, with_data: Sequence[ClientId]) -> list[tuple[str, Any]]:
    """What there is, in words, and its value or a digest of it."""
    found: list[tuple[str, Any]] = [("the number of clients with data", len(with_data))]
    found.append(("the digest of the client ids", _digest(map(repr, with_data))))
    for each in _spread(with_data, _MOST_SIZES):
        found.append((f"the number of examples of client {each}", num_examples(datamodule, each)))
    labels = {each: datamodule.label_counts(each) for each in _spread(with_data, _MOST_LABELS)}
    for each, counts in labels.items():
        found.append((f"the digest of the labels of client {each}", None if counts is None else _digest([counts])))
    for each in _spread(with_data, _MOST_BATCHES):
        with noted(f"while the first batch of client {each} was compared between processes"), generators_kept():
            digest = _digest(_parts(datamodule.calibration_batch(each)))
        found.append((f"the digest of the first batch of client {each}", digest))
    return found


def _spread(client_ids: Sequence[ClientId], most: int) -> list[ClientId]:
    """So many of them, evenly over all; the first and the last too."""
    count = min(most, len(client_ids))
    return [client_ids[index * (len(client_ids) - 1) // max(1, count - 1)] for index in range(count)]


def _parts(batch: Any) -> Iterable[Any]:
    """The tensors, numbers and texts in a batch, in its order; of what else there is, its class."""
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield repr(key)
            yield from _parts(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _parts(value)
    elif isinstance(batch, Tensor):
        yield batch
    else:
        yield repr(batch) if isinstance(batch, str | int | float | None) else type(batch).__qualname__


def _digest(parts: Iterable[Any]) -> str:
    """Eight hexadecimal digits of texts and tensors."""
    digest = hashlib.blake2b(digest_size=4)
    for part in parts:
        if isinstance(part, Tensor) and not part.is_sparse:
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{part}\n".encode())
    return digest.hexdigest()
