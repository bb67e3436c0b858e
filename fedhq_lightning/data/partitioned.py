"""A federated data module from an ordinary one: its training set, dealt to clients by a partitioner."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from fedhq_lightning.data.federated import FederatedDataModule
from fedhq_lightning.data.labels import Column, class_numbers, find_column, find_labels
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.lightnings import AnyDataModule, is_overridden
from fedhq_lightning.types import ClientId

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

# Read by flwr-datasets when it is imported. Only its FederatedDataset reports home, which is not used here, but a
# variable that the user set stands.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

ORDER_SEED = 42


class PartitionedDataModule(FederatedDataModule):
    """Any LightningDataModule, its training set dealt to clients by a flwr-datasets partitioner.

    Clients are numbered from 0. Their loaders keep the wrapped loader's batch size, `drop_last`, collate function and
    workers, and always shuffle (a sampler of the wrapped loader is not used). With `drop_last`, a client with fewer
    examples than a batch takes part but takes no step. Validation and test data stay whole, on the server. The examples
    are put into a fixed random order before they are dealt, as `flwr_datasets.FederatedDataset` does: several
    partitioners cut consecutive blocks, and many training sets are sorted by class.

    Args:
        datamodule: Its `train_dataloader()` gives one DataLoader over a dataset with a length.
        partitioner: Any partitioner of flwr-datasets that assigns whole examples. `DirichletPartitioner` fails at
            small alpha with its default `min_partition_size` of 10: give 0, empty clients are left out of the run.
        label_fn: From an example, as the training set gives it, to its label. Needed only where labels are not found by
            themselves: as `targets` or `labels` of the dataset (also below Subset and ConcatDataset), as the last
            tensor of a TensorDataset, or as a Hugging Face column that the partitioner names in `partition_by`.

    Raises:
        ConfigurationError: `datamodule` is federated already. On first use of the data: no single training DataLoader;
            labels needed and not found; the partitioner refuses.
    """

    def __init__(
        self,
        datamodule: AnyDataModule,
        partitioner: "Partitioner",
        label_fn: Callable[[Any], int] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(datamodule, FederatedDataModule):
            raise ConfigurationError(
                f"{type(datamodule).__name__} has clients already: give it to the trainer as it is"
            )
        self.datamodule = datamodule
        self.partitioner = partitioner
        self.label_fn = label_fn
        self._prepared = False
        self._stages: set[str] = set()
        self._loader: DataLoader[Any] | None = None
        self._client_rows: list[NDArray[np.int64]] = []
        self._classes: tuple[NDArray[np.int64], int] | None = None

    @property
    def client_ids(self) -> Sequence[ClientId]:
        """0, 1, 2, ...: one number per partition, empty ones included."""
        self.setup("fit")
        return range(len(self._client_rows))

    def prepare_data(self) -> None:
        """Let the wrapped data module download or unpack what it needs."""
        self.datamodule.prepare_data()
        self._prepared = True

    def setup(self, stage: str) -> None:
        """Set the wrapped data module up, once per stage, and deal the training examples before the first fit."""
        if stage in self._stages:
            return
        if not self._prepared:
            self.prepare_data()
        self.datamodule.setup(stage)
        if stage == "fit":
            self._deal()
        self._stages.add(stage)

    def num_examples(self, client_id: ClientId) -> int:
        """Training examples of one client, possibly 0."""
        return len(self._rows(client_id))

    def label_counts(self, client_id: ClientId) -> Tensor | None:
        """Examples per class of one client, (num_classes,) int64; None where labels are unknown or not classes."""
        rows = self._rows(client_id)
        if self._classes is None:
            return None
        numbers, num_classes = self._classes
        return torch.from_numpy(np.bincount(numbers[rows], minlength=num_classes).astype(np.int64))

    # One training loader per client: the signature is FederatedDataModule's, not Lightning's.
    def train_dataloader(self, client_id: ClientId) -> DataLoader[Any]:  # type: ignore[override]
        """Shuffled training batches of one client; the order comes from torch's global random numbers."""
        return self._client_loader(client_id, trains=True)

    def calibration_batch(self, client_id: ClientId) -> Any:
        """The client's first examples in the order in which they were dealt, as one batch: the same at every call."""
        return next(iter(self._client_loader(client_id, trains=False)))

    def val_dataloader(self) -> Any:
        """The wrapped module's validation data.

        Raises:
            ConfigurationError: It has none.
        """
        return self._held_out("val_dataloader", "fit")

    def test_dataloader(self) -> Any:
        """The wrapped module's test data.

        Raises:
            ConfigurationError: It has none.
        """
        return self._held_out("test_dataloader", "test")

    def _held_out(self, name: str, stage: str) -> Any:
        if not is_overridden(name, self.datamodule):
            raise ConfigurationError(
                f"{type(self.datamodule).__name__} has no {name}: add one that gives held-out data for the server"
            )
        self.setup(stage)
        return getattr(self.datamodule, name)()

    def _client_loader(self, client_id: ClientId, trains: bool) -> DataLoader[Any]:
        rows = self._rows(client_id)
        loader = self._loader
        assert loader is not None
        return DataLoader(
            Subset(loader.dataset, rows.tolist()),
            batch_size=loader.batch_size,
            shuffle=trains,
            drop_last=trains and loader.drop_last,
            # One of its own leaves torch's global random numbers alone.
            generator=None if trains else torch.Generator(),
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
        )

    def _rows(self, client_id: ClientId) -> NDArray[np.int64]:
        self.setup("fit")
        if not isinstance(client_id, int) or not 0 <= client_id < len(self._client_rows):
            raise KeyError(f"client {client_id!r}: the clients are 0 to {len(self._client_rows) - 1}")
        return self._client_rows[client_id]

    def _deal(self) -> None:
        # Imported here: it loads Hugging Face's datasets.
        from fedhq_lightning.data.partitioning import partition_rows

        loader = self._checked_loader()
        labels = find_labels(loader.dataset, self.label_fn)
        num_examples = len(loader.dataset)  # type: ignore[arg-type]  # _checked_loader has seen that it has a length
        order = np.random.default_rng(ORDER_SEED).permutation(num_examples)
        column_name = getattr(self.partitioner, "_partition_by", None)
        columns = {}
        if column_name is not None:
            column = self._column(loader.dataset, column_name, labels)
            labels = column if labels is None else labels
            columns[column_name] = column[order]
        self._client_rows = partition_rows(self.partitioner, order, columns)
        self._classes = None if labels is None else class_numbers(labels)
        self._loader = loader

    def _column(self, dataset: Any, name: str, labels: Column | None) -> Column:
        """What the partitioner calls `name`: a column of that name where the dataset has one, else the labels."""
        column = find_column(dataset, name) if self.label_fn is None else labels
        if column is None:
            column = labels
        if column is None:
            raise ConfigurationError(
                f"{type(self.partitioner).__name__} partitions by {name!r}, but {type(dataset).__name__} of "
                f"{type(self.datamodule).__name__} shows no labels: looked for targets, labels, the last tensor of a "
                f"TensorDataset and a Hugging Face column {name!r}; give label_fn, a function from an example to its "
                f"label, or a partitioner without partition_by, such as IidPartitioner"
            )
        return column

    def _checked_loader(self) -> DataLoader[Any]:
        name = type(self.datamodule).__name__
        loader = self.datamodule.train_dataloader()
        if not isinstance(loader, DataLoader):
            raise ConfigurationError(
                f"{name}.train_dataloader() gives {type(loader).__name__}; partitioning needs one torch DataLoader"
            )
        if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
            raise ConfigurationError(
                f"{name}'s training set {type(loader.dataset).__name__} has no length or no indices; partitioning "
                f"needs a map-style dataset, or write a FederatedDataModule of your own"
            )
        if loader.batch_size is None:
            raise ConfigurationError(
                f"{name}'s training loader has a batch sampler of its own or no batches; give it a batch_size instead"
            )
        return loader
