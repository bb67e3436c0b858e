"""What every federated data module keeps to, whatever its data."""

from typing import Any, SupportsIndex

import numpy as np
import torch

from fedhq_lightning.data.federated import FederatedDataModule
from fedhq_lightning.local.evaluation import as_loaders
from fedhq_lightning.testing.batches import examples_of, kinds_of
from fedhq_lightning.testing.host_state import generator_states, seeded
from fedhq_lightning.testing.same_values import same_values
from fedhq_lightning.types import ClientId


class DataModuleContract:
    """Inherit, give `make`, and pytest runs the contract: `class TestMine(DataModuleContract): make = Mine`.

    Attributes:
        clients_looked_at: Clients whose batches are drawn, the first that hold examples.
    """

    clients_looked_at: int = 5

    def make(self) -> FederatedDataModule:
        """A new data module with the same settings at every call."""
        raise NotImplementedError(f"{type(self).__name__} gives no `make`: it returns a new data module at every call")

    def batch_size(self, batch: Any) -> int:
        """Examples in a batch; override it where no tensor's length tells them."""
        return examples_of(batch)

    def ready(self) -> FederatedDataModule:
        """A new data module, prepared and set up as for a fit."""
        module = self.make()
        module.prepare_data()
        module.setup("fit")
        return module

    def clients(self, module: FederatedDataModule) -> list[ClientId]:
        """The clients whose batches are drawn."""
        holding = (client_id for client_id in module.client_ids if module.num_examples(client_id))
        return [client_id for client_id, _ in zip(holding, range(self.clients_looked_at), strict=False)]

    def test_ids_are_plain_and_unique(self) -> None:
        """There is a client, and every client has a whole number or a text of its own as its id."""
        client_ids = self.ready().client_ids
        assert len(client_ids) > 0
        for client_id in client_ids:
            assert isinstance(client_id, int | str | np.integer), f"client {client_id!r}"
            assert not isinstance(client_id, bool), f"client {client_id!r}"
        assert len(set(client_ids)) == len(client_ids)

    def test_ids_are_stable(self) -> None:
        """Set up again, or made anew as on another process, the clients are the same in the same order."""
        module = self.ready()
        client_ids = list(module.client_ids)
        module.setup("fit")
        assert list(module.client_ids) == client_ids
        with seeded(1):
            assert list(self.ready().client_ids) == client_ids

    def test_sizes_are_whole_numbers(self) -> None:
        """`num_examples` is a whole number, 0 or more, for every client, and more than 0 for one."""
        module = self.ready()
        sizes = [module.num_examples(client_id) for client_id in module.client_ids]
        assert all(isinstance(size, SupportsIndex) for size in sizes)
        assert min(sizes) >= 0
        assert sum(sizes) > 0

    def test_sizes_are_those_of_the_loaders(self) -> None:
        """A client's loader gives `num_examples` examples in one pass, less than a batch fewer with `drop_last`."""
        module = self.ready()
        for client_id in self.clients(module):
            loader = module.train_dataloader(client_id)
            sizes = [self.batch_size(batch) for batch in loader]
            left = module.num_examples(client_id) - sum(sizes)
            most_left = (loader.batch_size or 1) - 1 if getattr(loader, "drop_last", False) else 0
            assert 0 <= left <= most_left, f"client {client_id!r}: {sum(sizes)} of {sum(sizes) + left} examples"

    def test_loaders_know_their_length(self) -> None:
        """The length of a client's loader is the number of its batches, as a local fit counts on."""
        module = self.ready()
        for client_id in self.clients(module):
            loader = module.train_dataloader(client_id)
            assert len(loader) == len(list(loader)), f"client {client_id!r}"

    def test_loaders_begin_again(self) -> None:
        """A second pass over a loader begins anew and gives as many batches."""
        module = self.ready()
        for client_id in self.clients(module):
            loader = module.train_dataloader(client_id)
            first, second = len(list(loader)), len(list(loader))
            assert first == second, f"client {client_id!r}"

    def test_the_same_seed_draws_the_same_batches(self) -> None:
        """The global seeds decide the batches, whatever was drawn before and by whichever process."""
        module, other = self.ready(), self.ready()
        batches = {}
        for client_id in self.clients(module):
            with seeded(1):
                batches[client_id] = list(module.train_dataloader(client_id))
        for client_id in reversed(batches):
            for each in (module, other):
                with seeded(1):
                    again = list(each.train_dataloader(client_id))
                assert same_values(again, batches[client_id]), f"client {client_id!r}"

    def test_label_counts_are_whole_numbers_of_classes(self) -> None:
        """Where told, label counts are int64, 0 or more, of the same classes for every client."""
        counts = self._label_counts(self.ready())
        for client_id, each in counts.items():
            assert (each.dtype, each.dim()) == (torch.int64, 1), f"client {client_id!r}"
            assert int(each.min()) >= 0, f"client {client_id!r}"
        assert len({len(each) for each in counts.values()}) <= 1

    def test_label_counts_sum_to_the_examples(self) -> None:
        """Where told, a client's label counts sum to its examples."""
        module = self.ready()
        for client_id, each in self._label_counts(module).items():
            assert int(each.sum()) == module.num_examples(client_id), f"client {client_id!r}"

    def test_calibration_batches_are_fixed(self) -> None:
        """A client's calibration batch is the same at every call, whatever the seed, and on every process."""
        module, other = self.ready(), self.ready()
        for client_id in self._clients_with_batches(module):
            with seeded(1):
                batch = module.calibration_batch(client_id)
            for each in (module, other):
                with seeded(2):
                    assert same_values(each.calibration_batch(client_id), batch), f"client {client_id!r}"

    def test_calibration_batches_disturb_nothing(self) -> None:
        """Asking for a calibration batch leaves the global random numbers as they were."""
        module = self.ready()
        for client_id in self._clients_with_batches(module):
            before = generator_states()
            module.calibration_batch(client_id)
            assert same_values(generator_states(), before), f"client {client_id!r}"

    def test_calibration_batches_are_like_training_batches(self) -> None:
        """A calibration batch holds examples, of the kinds that the client's training batches hold."""
        module = self.ready()
        for client_id in self._clients_with_batches(module):
            batch = module.calibration_batch(client_id)
            assert 0 < self.batch_size(batch) <= module.num_examples(client_id), f"client {client_id!r}"
            assert kinds_of(batch) == kinds_of(next(iter(module.train_dataloader(client_id)))), f"client {client_id!r}"

    def test_held_out_batches_are_given(self) -> None:
        """`val_dataloader` gives batches, as many at every pass; several loaders come as a list or by name."""
        for loader in as_loaders(self.ready().val_dataloader()):
            first, second = list(loader), list(loader)
            assert len(first) == len(second)
            assert sum(map(self.batch_size, first)) > 0

    def test_what_clients_hold_back_is_fixed(self) -> None:
        """A client's held-back batches are the same at every call, whatever the seed, and on every process."""
        module, other = self.ready(), self.ready()
        for client_id in self.clients(module):
            with seeded(1):
                batches = [list(loader) for loader in as_loaders(module.client_val_dataloader(client_id))]
            for each in (module, other):
                with seeded(2):
                    again = [list(loader) for loader in as_loaders(each.client_val_dataloader(client_id))]
                assert same_values(again, batches), f"client {client_id!r}"

    def _label_counts(self, module: FederatedDataModule) -> dict[ClientId, torch.Tensor]:
        told = {client_id: module.label_counts(client_id) for client_id in module.client_ids}
        return {client_id: counts for client_id, counts in told.items() if counts is not None}

    def _clients_with_batches(self, module: FederatedDataModule) -> list[ClientId]:
        return [each for each in self.clients(module) if len(module.train_dataloader(each))]
