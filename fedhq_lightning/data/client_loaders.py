"""Clients' loaders: what the training loader of the whole says, for the examples of one client."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.seeds import derive_seed

_OWN = "or write a FederatedDataModule, whose train_dataloader(client_id) makes each client's own"
_MAKES_BATCHES = ("__iter__", "_get_iterator", "__len__", "_index_sampler", "_auto_collation")


class ClientExamples(Subset[Any]):
    """The examples of one client.

    In a worker, whatever else is read from it or set on it is the dataset's: a `worker_init_fn` reaches the dataset as
    `torch.utils.data.get_worker_info().dataset`, to open its file or to seed it.
    """

    def __getattr__(self, name: str) -> Any:
        if name in ("dataset", "indices") or name.startswith("__") or get_worker_info() is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if get_worker_info() is None:
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)


class ClientLoaders:
    """Makes every client's loader after one DataLoader over all their examples.

    Order is as the loader has it: shuffled by `shuffle=True` and SubsetRandomSampler, in the dataset's by
    `shuffle=False`. Where it has a generator of its own, so has every client's loader: seeded from the first seed of
    that generator and from torch's, it neither follows nor moves torch's global random numbers, and no client's order
    depends on who trained before.

    Args:
        loader: A loader that a LightningDataModule gives for training.
        owner: Who gives it, for messages.

    Attributes:
        drawn: (num_drawn,) rows of its dataset that one pass draws; a row may be there twice.
        dataset: The examples in these rows: the loader's dataset itself where all are drawn.

    Raises:
        ConfigurationError: No DataLoader; no map-style dataset; a sampler, a batch sampler or an `__iter__` that
            clients' loaders could not follow.
    """

    def __init__(self, loader: Any, owner: str) -> None:
        _check_kind(loader, owner)
        self._loader: DataLoader[Any] = loader
        self._shuffles = not isinstance(loader.sampler, SequentialSampler)
        self.drawn = _drawn_rows(loader, owner)
        draws_all = np.array_equal(self.drawn, np.arange(len(loader.dataset)))
        self.dataset: Dataset[Any] = loader.dataset if draws_all else Subset(loader.dataset, self.drawn.tolist())

    def training(self, rows: NDArray[np.int64]) -> DataLoader[Any]:
        """A client's training batches.

        Args:
            rows: Of the loader's dataset.
        """
        loader = self._loader
        generator = _own_generator(loader.generator)
        given = getattr(loader.sampler, "generator", None)
        examples = self._examples(rows if self._shuffles else np.sort(rows))
        return DataLoader(
            examples,
            sampler=RandomSampler(examples, generator=generator if given is loader.generator else _own_generator(given))
            if self._shuffles
            else SequentialSampler(examples),
            drop_last=loader.drop_last,
            generator=generator,
            persistent_workers=loader.persistent_workers,
            **self._kept(),
        )

    def in_order(self, rows: NDArray[np.int64]) -> DataLoader[Any]:
        """Batches of a client's examples in the given order, the last one not full.

        Args:
            rows: Of the loader's dataset.
        """
        # A generator of its own leaves torch's global random numbers alone.
        return DataLoader(self._examples(rows), generator=torch.Generator(), **self._kept())

    def _examples(self, rows: NDArray[np.int64]) -> ClientExamples:
        return ClientExamples(self._loader.dataset, rows.tolist())

    def _kept(self) -> dict[str, Any]:
        names = (
            "batch_size collate_fn num_workers pin_memory pin_memory_device timeout worker_init_fn "
            "multiprocessing_context prefetch_factor in_order"
        )
        return {name: getattr(self._loader, name) for name in names.split()}


def _own_generator(given: torch.Generator | None) -> torch.Generator | None:
    if given is None:
        return None
    seed = derive_seed(given.initial_seed(), "client's loader", torch.initial_seed())
    return torch.Generator().manual_seed(seed)


def _check_kind(loader: Any, owner: str) -> None:
    kind = type(loader)
    if not isinstance(loader, DataLoader):
        raise ConfigurationError(
            f"{owner}.train_dataloader() gives {kind.__name__}; partitioning needs one torch DataLoader: give that, "
            f"{_OWN}"
        )
    overridden = [name for name in _MAKES_BATCHES if getattr(kind, name) is not getattr(DataLoader, name)]
    if overridden:
        raise ConfigurationError(
            f"{owner}'s training loader {kind.__name__} has {overridden[0]} of its own, which clients' loaders would "
            f"lack: do what it does to batches in collate_fn or in the module's on_after_batch_transfer, {_OWN}"
        )
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise ConfigurationError(
            f"{owner}'s training set {type(loader.dataset).__name__} has no length or no indices; partitioning needs a "
            f"map-style dataset: give that, {_OWN}"
        )
    if loader.batch_size is None:
        batches = "no batches" if loader.batch_sampler is None else type(loader.batch_sampler).__name__
        raise ConfigurationError(
            f"{owner}'s training loader has {batches} for its batch_sampler, which clients' loaders could not follow: "
            f"give it a batch_size instead, {_OWN}"
        )


def _drawn_rows(loader: DataLoader[Any], owner: str) -> NDArray[np.int64]:
    """Rows of the dataset that one pass of the loader draws, in the sampler's order before shuffling."""
    sampler: Any = loader.sampler
    size = len(loader.dataset)  # type: ignore[arg-type]  # _check_kind has seen that it has a length
    if _is(sampler, SequentialSampler) or (_is(sampler, RandomSampler) and _draws_each_once(sampler)):
        rows = np.arange(len(sampler.data_source))
    elif _is(sampler, SubsetRandomSampler):
        rows = np.asarray(sampler.indices)
    else:
        raise ConfigurationError(
            f"{owner}'s training loader draws by {type(sampler).__name__}; clients' loaders can follow shuffle=True, "
            f"shuffle=False and SubsetRandomSampler: {_instead_of(sampler)}, {_OWN}"
        )
    is_list = rows.ndim == 1 and rows.size > 0 and rows.dtype.kind in "iu"
    if not is_list or rows.min() < -size or rows.max() >= size:
        raise ConfigurationError(
            f"{owner}'s training loader: indices of {type(sampler).__name__} must be a list of one or more row numbers "
            f"below {size}, the length of {type(loader.dataset).__name__}; of a mask, take mask.nonzero().flatten()"
        )
    return np.where(rows < 0, rows + size, rows).astype(np.int64)


def _is(sampler: Any, kind: type) -> bool:
    """Whether a sampler draws as `kind` does: a subclass may not."""
    return isinstance(sampler, kind) and type(sampler).__iter__ is kind.__iter__  # type: ignore[attr-defined]  # of any sampler


def _draws_each_once(sampler: RandomSampler) -> bool:
    return not sampler.replacement and sampler.num_samples == len(sampler.data_source)


def _instead_of(sampler: Any) -> str:
    if isinstance(sampler, WeightedRandomSampler):
        return "put the weights into the loss"
    if isinstance(sampler, DistributedSampler):
        return "leave it out, as clients are trained by one process each"
    if isinstance(sampler, RandomSampler):
        return "leave replacement and num_samples out (the trainer's local_steps says how long a client trains)"
    return "take one of these"
