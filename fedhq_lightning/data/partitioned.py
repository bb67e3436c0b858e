"""A federated data module from an ordinary one: its training set, dealt to clients by a partitioner."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from fedhq_lightning.data.client_holdout import check_holdout, held_back
from fedhq_lightning.data.client_loaders import ClientLoaders
from fedhq_lightning.data.federated import FederatedDataModule
from fedhq_lightning.data.label_counts import LabelCounts
from fedhq_lightning.data.labels import find_labels
from fedhq_lightning.data.partition_column import column_name, deals_by_label, partition_column
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.extras import check_installed
from fedhq_lightning.support.lightnings import AnyDataModule, is_overridden
from fedhq_lightning.support.seeds import generators_kept
from fedhq_lightning.types import ClientId

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

# Read by flwr-datasets when it is imported. Only its FederatedDataset reports home, which is not used here, but a
# variable that the user set stands.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

ORDER_SEED = 42


class _Share(NamedTuple):
    """One client's examples, by their positions among those that were dealt, each (num_examples,)."""

    training: NDArray[np.int64]
    held_back: NDArray[np.int64]


class PartitionedDataModule(FederatedDataModule):
    """Any LightningDataModule, its training set dealt to clients by a flwr-datasets partitioner.

    Clients are numbered from 0. Their loaders keep what the wrapped loader is made with: batch size, `drop_last`,
    collate function, workers and so on. They shuffle where it shuffles, and with a `SubsetRandomSampler` only its
    indices are dealt; another sampler is refused. With `drop_last`, a client with fewer examples than a batch takes
    part but takes no step. Validation and test data stay whole, on the server. The examples are put into a fixed random
    order before they are dealt, as `flwr_datasets.FederatedDataset` does: several partitioners cut consecutive blocks,
    and many training sets are sorted by class.

    A partitioner with `partition_by` deals by the column, or else the attribute, of that name that the dataset has.
    Where it has none, one that deals by label, or that names `label`, `labels`, `target` or `targets`, deals by the
    labels.

    Args:
        datamodule: Its `train_dataloader()` gives one DataLoader over a dataset with a length.
        partitioner: Any partitioner of flwr-datasets that assigns whole examples. `DirichletPartitioner` fails at
            small alpha with its default `min_partition_size` of 10: give 0, empty clients are left out of the run.
        label_fn: From an example, as the training set gives it, to its label. Needed only where labels are not found by
            themselves: as `targets` or `labels` of the dataset (also below Subset and ConcatDataset); as the second
            tensor of a TensorDataset, or of more than two the only one of whole numbers after the first; in a Hugging
            Face table as the only ClassLabel column, the one called label, labels, target or targets, or the one that a
            partitioner by label names.
        client_holdout: Share of each client's examples that it never trains on and evaluates models on, such as 0.2;
            sizes and label counts are those of the others. None for none.
        holdout_seed: Which ones; the same in every run unless it is set.

    Raises:
        ConfigurationError: `datamodule` is federated already; a share out of range. On first use of the data: no single
            training DataLoader that clients' loaders can follow; the partitioner's column or labels needed and not
            found, or to be dealt by class and no classes; the partitioner refuses.
    """

    def __init__(
        self,
        datamodule: AnyDataModule,
        partitioner: "Partitioner",
        label_fn: Callable[[Any], int] | None = None,
        client_holdout: float | None = None,
        holdout_seed: int | None = None,
    ) -> None:
        super().__init__()
        check_holdout(client_holdout)
        if isinstance(datamodule, FederatedDataModule):
            raise ConfigurationError(
                f"{type(datamodule).__name__} has clients already: give it to the trainer as it is"
            )
        self.datamodule = datamodule
        self.partitioner = partitioner
        self.label_fn = label_fn
        self.client_holdout = client_holdout
        self.holdout_seed = holdout_seed
        self._prepared = False
        self._stages: set[str] = set()
        self._loaders: ClientLoaders
        self._dealt: list[_Share] = []
        self._label_counts: LabelCounts

    @property
    def client_ids(self) -> Sequence[ClientId]:
        """0, 1, 2, ...: one number per partition, empty ones included."""
        self.setup("fit")
        return range(len(self._dealt))

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

    def model_inputs(self) -> Mapping[str, Any] | None:
        """What the wrapped module's method of this name tells; None where it has none."""
        tell = getattr(self.datamodule, "model_inputs", None)
        return None if tell is None else tell()

    def teardown(self, stage: str) -> None:
        """Let the wrapped data module clean up; where it does, it is set up anew when it is needed again."""
        self.datamodule.teardown(stage)
        if is_overridden("teardown", self.datamodule):
            self._stages.clear()  # what it cleans up it alone knows

    def num_examples(self, client_id: ClientId) -> int:
        """Training examples of one client, possibly 0."""
        return len(self._share(client_id).training)

    def label_counts(self, client_id: ClientId) -> Tensor | None:
        """Examples per class of one client, (num_classes,) int64; None where labels are unknown or not classes."""
        positions = self._share(client_id).training
        return self._label_counts.among(positions)

    # One training loader per client: the signature is FederatedDataModule's, not Lightning's.
    def train_dataloader(self, client_id: ClientId) -> DataLoader[Any]:  # type: ignore[override]  # as in its base
        """Training batches of one client, shuffled where the wrapped loader shuffles.

        The order comes from torch's global random numbers, or, where the wrapped loader has a generator, from that's
        first seed and torch's.
        """
        rows = self._rows(client_id)
        return self._loaders.training(rows)

    def calibration_batch(self, client_id: ClientId) -> Any:
        """The client's first examples in the order in which they were dealt, as one batch: the same at every call.

        Global random numbers are left as they were.
        """
        rows = self._rows(client_id)
        with generators_kept():
            return next(iter(self._loaders.in_order(rows)))

    def client_val_dataloader(self, client_id: ClientId) -> DataLoader[Any] | None:
        """What the client holds back, as the wrapped training set gives it, in a fixed order; None for nothing."""
        positions = self._share(client_id).held_back
        return self._loaders.in_order(self._loaders.drawn[positions]) if len(positions) else None

    def val_dataloader(self) -> Any:
        """The wrapped module's validation data.

        Raises:
            ConfigurationError: It has none.
        """
        return self._held_out("val_dataloader", "fit", "validate")

    def test_dataloader(self) -> Any:
        """The wrapped module's test data.

        Raises:
            ConfigurationError: It has none.
        """
        return self._held_out("test_dataloader", "test")

    def _held_out(self, name: str, *stages: str) -> Any:
        if not is_overridden(name, self.datamodule):
            raise ConfigurationError(
                f"{type(self.datamodule).__name__} has no {name}: add one that gives held-out data for the server"
            )
        if not self._stages.intersection(stages):
            self.setup(stages[0])
        return getattr(self.datamodule, name)()

    def _rows(self, client_id: ClientId) -> NDArray[np.int64]:
        """Rows of the wrapped training set that the client holds."""
        positions = self._share(client_id).training
        return self._loaders.drawn[positions]

    def _share(self, client_id: ClientId) -> _Share:
        self.setup("fit")
        if not isinstance(client_id, int) or not 0 <= client_id < len(self._dealt):
            raise KeyError(f"client {client_id!r}: the clients are 0 to {len(self._dealt) - 1}")
        return self._dealt[client_id]

    def _deal(self) -> None:
        check_installed("PartitionedDataModule", "datasets")
        # Imported here: it loads Hugging Face's datasets.
        from fedhq_lightning.data.partitioning import partition_rows

        owner = type(self.datamodule).__name__
        loaders = ClientLoaders(self.datamodule.train_dataloader(), owner)
        name = column_name(self.partitioner)
        by_label = name if deals_by_label(self.partitioner) else None
        labels = find_labels(loaders.dataset, self.label_fn, by_label)
        order = np.random.default_rng(ORDER_SEED).permutation(len(loaders.dataset))  # type: ignore[arg-type]  # has one
        columns = {}
        if name is not None:
            is_given = self.label_fn is not None
            column = partition_column(self.partitioner, loaders.dataset, labels, is_given, owner)
            columns[name] = column[order]
        dealt = partition_rows(self.partitioner, order, columns)
        self._dealt = [self._shared_out(loaders.drawn, client_id, held) for client_id, held in enumerate(dealt)]
        self._loaders, self._label_counts = loaders, LabelCounts(labels, owner)

    def _shared_out(self, drawn: NDArray[np.int64], client_id: int, held: NDArray[np.int64]) -> _Share:
        if self.client_holdout is None:
            return _Share(held, held[:0])
        is_back = held_back(drawn[held], self.client_holdout, self.holdout_seed, client_id)
        return _Share(held[~is_back], held[is_back])


def unwrapped(datamodule: AnyDataModule) -> AnyDataModule:
    """The data module whose hooks Lightning would call: the one within a `PartitionedDataModule`, else itself."""
    return datamodule.datamodule if isinstance(datamodule, PartitionedDataModule) else datamodule
