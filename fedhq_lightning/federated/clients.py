"""What is asked of the clients before the first round: their ids, their sizes, their batches."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import SequentialSampler

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.data.federated import sampler_of
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.notes import noted
from fedhq_lightning.types import ClientId, FitOptions

# Loaders of more clients are not made before round 1: it is to begin within seconds.
_MOST_LOOKED_AT = 10_000


def plain_client_ids(given: Sequence[ClientId]) -> Sequence[ClientId]:
    """The ids as Python's own numbers and texts, which records and payloads can hold; a range stays one.

    Raises:
        ConfigurationError: An id of another kind, or one that is there twice.
    """
    if isinstance(given, range):
        return given
    plain = [each.item() if isinstance(each, np.generic) else each for each in given]
    for each in plain:
        if isinstance(each, bool) or not isinstance(each, int | str):
            raise ConfigurationError(
                f"client_ids: {each!r} is a {type(each).__name__}; every client needs an int or str of its own"
            )
    if len(set(plain)) < len(plain):
        twice = Counter(plain).most_common(1)[0][0]
        raise ConfigurationError(f"client_ids: {twice!r} is there twice; every client needs an id of its own")
    return plain


def num_examples(datamodule: FederatedDataModule, client_id: ClientId) -> int:
    """A client's training examples, as a Python number.

    Raises:
        ConfigurationError: No whole number, or less than 0.
    """
    try:
        given = datamodule.num_examples(client_id)
    except Exception as error:
        error.add_note(f"while client {client_id} told how many examples it has")
        raise
    try:
        found = operator.index(given)
    except TypeError:
        found = -1
    if found < 0:
        raise ConfigurationError(f"num_examples({client_id!r}) is {given!r}; it must be a whole number, 0 or more")
    return found


def client_sizes(datamodule: FederatedDataModule, client_ids: Sequence[ClientId]) -> NDArray[np.int64]:
    """Training examples of every client, by its position.

    They are asked for once: what a client claims later would be its weight in the average, of its own choice.
    """
    return np.fromiter((num_examples(datamodule, each) for each in client_ids), np.int64, len(client_ids))


def client_to_probe(datamodule: FederatedDataModule, client_ids: Sequence[ClientId]) -> ClientId:
    """The client with the most examples among those with a batch, the first of equals: its first batch is a full one.

    Args:
        datamodule: Gives sizes and loaders.
        client_ids: Clients with data; only the first 10,000 are looked at.

    Raises:
        ConfigurationError: None of them has a batch, or a loader has no length.
    """
    largest_first = sorted(
        client_ids[:_MOST_LOOKED_AT], key=lambda client_id: num_examples(datamodule, client_id), reverse=True
    )
    for client_id in largest_first:
        if num_batches(datamodule, client_id):
            return client_id
    raise ConfigurationError(
        f"no client's training loader gives a batch, not even that of client {largest_first[0]!r}, which holds "
        f"{num_examples(datamodule, largest_first[0])} examples; lower batch_size, or set drop_last=False"
    )


def num_batches(datamodule: FederatedDataModule, client_id: ClientId) -> int:
    """Batches in a client's training loader.

    Raises:
        ConfigurationError: The loader does not know.
    """
    try:
        with noted(f"while client {client_id} made its training loader"):
            return len(datamodule.train_dataloader(client_id))
    except TypeError as error:
        raise ConfigurationError(
            f"client {client_id!r}: its training loader has no length ({error}); a local fit needs one, so take a "
            "map-style dataset, or give the IterableDataset a __len__"
        ) from error


def check_last_batches(
    datamodule: FederatedDataModule,
    client_ids: Sequence[ClientId],
    batch_size: int,
    batch_norm: str | None,
    options: FitOptions,
) -> None:
    """Refuse a last batch of one example where a BatchNorm layer cannot train on it.

    Args:
        datamodule: Gives sizes and loaders.
        client_ids: Clients with data; only the first 10,000 are looked at.
        batch_size: Examples in a full batch.
        batch_norm: Name of a layer that cannot train on one example; None where there is none.
        options: A local fit by steps may end before the last batch.

    Raises:
        ConfigurationError: There is such a client.
    """
    if batch_norm is None:
        return
    for client_id in client_ids[:_MOST_LOOKED_AT]:
        examples = num_examples(datamodule, client_id)
        full, rest = divmod(examples, batch_size)
        is_reached = options.local_steps is None or options.local_steps * options.accumulate_grad_batches > full
        if rest == 1 and is_reached and num_batches(datamodule, client_id) > full:
            raise ConfigurationError(
                f"client {client_id!r} holds {examples} examples in batches of {batch_size}: the last batch is "
                f"one example, on which {batch_norm} (BatchNorm) cannot train; set drop_last=True in the "
                "training loader, or take another batch_size"
            )


def warn_of_examples_never_drawn(datamodule: FederatedDataModule, client_id: ClientId, options: FitOptions) -> None:
    """Tell of a local fit that ends before the last batch of a loader that begins with the same ones every round.

    Args:
        datamodule: Gives loaders.
        client_id: The client with the most examples.
        options: What a local fit does.
    """
    if options.local_steps is None:
        return
    num_drawn, loader = options.local_steps * options.accumulate_grad_batches, datamodule.train_dataloader(client_id)
    if num_drawn < len(loader) and isinstance(sampler_of(loader), SequentialSampler):
        rank_zero_warn(
            f"client {client_id!r}: its training loader does not shuffle, and a local fit ends after {num_drawn} of "
            f"{len(loader)} batches, so the others are never trained on; give the loader shuffle=True, or local_epochs "
            "in place of local_steps"
        )
