"""The data that a federated run needs: loaders of each client, one held-out set for the server."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import BatchSampler

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.seeds import generators_kept
from fedhq_lightning.types import ClientId


class FederatedDataModule(LightningDataModule, ABC):
    """Base for data that is split over clients.

    Subclasses give `client_ids`, `train_dataloader(client_id)` and `val_dataloader()`; `test_dataloader()` where there
    is test data, `client_val_dataloader(client_id)` where clients hold examples back; the rest has defaults.
    `prepare_data` and `setup` work as in any LightningDataModule.
    """

    @property
    @abstractmethod
    def client_ids(self) -> Sequence[ClientId]:
        """Every client, in a fixed order; the same on every process."""

    @abstractmethod
    # A federated module has one training loader per client, so the signature cannot be Lightning's.
    def train_dataloader(self, client_id: ClientId) -> Any:  # type: ignore[override]  # Lightning's takes no client
        """The client's training batches. Shuffling draws from torch's global random numbers, which the trainer seeds.

        Args:
            client_id: One of `client_ids`.
        """

    @abstractmethod
    def val_dataloader(self) -> Any:
        """The server's held-out batches."""

    def client_val_dataloader(self, client_id: ClientId) -> Any:
        """What the client holds back: batches that it never trains on, for it to evaluate models on.

        One loader, several, or None where it holds nothing back. The batches are such as `validation_step` takes, and
        the same at every call.

        Args:
            client_id: One of `client_ids`.
        """
        return None

    def num_examples(self, client_id: ClientId) -> int:
        """Training examples that the client holds; 0 leaves it out of the run.

        By default what one pass of its loader draws: the length of the sampler, or else of the dataset.

        Args:
            client_id: One of `client_ids`.

        Raises:
            ConfigurationError: The client's loader has neither with a length; override this method then.
        """
        loader = self.train_dataloader(client_id)
        dataset = getattr(loader, "dataset", None)
        drawn = sampler_of(loader)
        held = drawn if isinstance(drawn, Sized) else dataset
        if not isinstance(held, Sized):
            kind = type(loader if dataset is None else dataset).__name__
            raise ConfigurationError(
                f"client {client_id!r}: {kind} does not tell how many training examples it holds; give a DataLoader "
                "over a map-style dataset, or override num_examples"
            )
        return len(held)

    def label_counts(self, client_id: ClientId) -> Tensor | None:
        """Examples per class, (num_classes,) int64 with the same classes for every client, or None if unknown.

        Args:
            client_id: One of `client_ids`.
        """
        return None

    def model_inputs(self) -> Mapping[str, Any] | None:
        """What the inputs and outputs of a model on these data stand for, as JSON has it, or None if that is not told.

        It is asked for once the data are set up, and written to `inputs.json` of the run and of its `model/`. A run
        that is resumed with data that tell something else is refused. Common keys: `columns`, `classes`, and
        `pixels`, whose `mean` and `std`, one value a channel or one for all, make an input, (pixel - mean) / std, of a
        pixel; its `dtype` is "uint8" for whole numbers from 0 to 255, else "float32".
        """
        return None

    def calibration_batch(self, client_id: ClientId) -> Any:
        """One batch of the client's own data: by default the first of its training loader, the same at every call.

        The global random numbers of Python, NumPy and torch are left as they were.

        Args:
            client_id: One of `client_ids`, whose training loader gives a batch.
        """
        with generators_kept():
            return next(iter(self.train_dataloader(client_id)))


def sampler_of(loader: Any) -> Any:
    """What draws a loader's examples one by one, or None where that cannot be told.

    Args:
        loader: Anything that gives batches.
    """
    batches = getattr(loader, "batch_sampler", None)
    if batches is not None:
        return getattr(batches, "sampler", None)
    sampler = getattr(loader, "sampler", None)
    return sampler.sampler if isinstance(sampler, BatchSampler) else sampler
