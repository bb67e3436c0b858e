"""Federated training of one client is local training, and the seed decides every bit."""

from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.federated.algorithms import FedAvg, FedOpt, FedProx
from fedhq_lightning.federated.callback import Monitored
from fedhq_lightning.support.seeds import derive_seed, seed_generators

from ..beside_lightning import lightning_fit
from ..small_federation import SmallData, SmallModule, same_bits, trainer
from .runs import fit, last_state, records


@pytest.mark.usefixtures("quick")
class TestOneClient:
    """With one client, fp and uplink weights, federated training is local training."""

    def test_a_round_is_a_local_fit_written_by_hand(self) -> None:
        data = SmallData({"only": 21})
        _, state = fit(data=data, max_rounds=1, local_epochs=3, seed=11)

        module = SmallModule()
        optimizer = module.configure_optimizers()
        seed_generators(derive_seed(11, "fit", 1, "only"))
        loader = data.train_dataloader("only")
        for _ in range(3):
            for inputs, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(inputs), labels).backward()
                optimizer.step()
        assert same_bits(state, {name: value.detach() for name, value in module.state_dict().items()})

    def test_a_round_is_a_fit_of_lightnings_trainer(self) -> None:
        data = SmallData((21,))
        _, state = fit(data=data, max_rounds=1, local_epochs=2, gradient_clip_val=0.1, accumulate_grad_batches=2)
        module = SmallModule()

        class SeedsAtStart(L.Callback):
            def on_train_start(self, *arguments: Any) -> None:
                seed_generators(derive_seed(0, "fit", 1, 0))

        # Lightning draws the first epoch's order before any hook: a loader that is seeded when it is first asked.
        class Loader(DataLoader[Any]):
            asked = False

            def __iter__(self) -> Any:
                if not Loader.asked:
                    seed_generators(derive_seed(0, "fit", 1, 0))
                Loader.asked = True
                return super().__iter__()

        loader = Loader(data.dataset(0), 8, shuffle=True)
        lightning_fit(module, loader, max_epochs=2, gradient_clip_val=0.1, accumulate_grad_batches=2)
        assert same_bits(state, {name: value.detach() for name, value in module.state_dict().items()})

    def test_fedprox_without_its_term_is_fedavg(self) -> None:
        states = [fit(aggregator=each)[1] for each in (FedAvg(), FedProx(mu=0.0), FedProx(mu=0.5))]
        assert same_bits(states[0], states[1])
        assert not same_bits(states[0], states[2])


@pytest.mark.usefixtures("quick")
class TestDeterminism:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"scheme": "w4a8", "callbacks": FixedAllocator(0.5), "clients_per_round": 3, "fleet": "mixed"},
            {"scheme": "w3a8", "callbacks": FixedAllocator("ptq"), "uplink": "delta", "precision": "bf16-mixed"},
        ],
        ids=["fp", "hybrid", "delta in bf16"],
    )
    def test_the_seed_decides_every_bit(self, settings: dict[str, Any]) -> None:
        (first, one), (_, two) = fit(seed=3, **settings), fit(seed=3, **settings)
        assert same_bits(one, two)
        assert not same_bits(one, fit(seed=4, **settings)[1])
        assert not same_bits(one, SmallModule().state_dict())
        assert first.summary["seed"] == 3

    def test_global_random_numbers_do_not_matter(self) -> None:
        torch.manual_seed(1)
        one = fit()[1]
        torch.manual_seed(2)
        assert same_bits(one, fit()[1])

    def test_the_same_trainer_may_fit_again(self) -> None:
        there = trainer(aggregator=FedOpt(partial(torch.optim.SGD, lr=0.5, momentum=0.9)))
        states = []
        for _ in range(2):
            there.fit(SmallModule(), SmallData())
            states.append(last_state(there))
        assert same_bits(*states)

    def test_the_same_trainer_may_fit_another_module(self) -> None:
        class Other(SmallModule):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("another_accuracy", self(batch[0]).mean())

        there = trainer(max_rounds=1)
        there.fit(SmallModule(), SmallData())
        assert there.monitored == Monitored("val_loss", "min")
        there.fit(Other(), SmallData())
        assert there.monitored == Monitored("another_accuracy", "max")

    def test_clients_leave_nothing_behind_for_the_next(self) -> None:
        """Otherwise bits would depend on which client trained before on the same process."""

        class Remembers(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("seen", torch.zeros(()), persistent=False)

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                self.seen += 1
                return super().training_step(batch, batch_idx) * self.seen

        together = fit(Remembers(), SmallData({"a": 20, "b": 20}), max_rounds=1, uplink="delta")[0]
        losses = {each.client_id: each.metrics["train_loss"] for each in records(together)[1].clients}
        alone = fit(Remembers(), SmallData({"b": 20}), max_rounds=1)[0]
        assert losses.keys() == {"a", "b"}
        steps = [each.num_steps for each in records(together)[1].clients]
        assert steps == [3, 3]
        assert alone.summary["rounds"] == 1
        seen: list[float] = []

        class Notes(Remembers):
            def on_train_start(self) -> None:
                seen.append(self.seen.item())

        fit(Notes(), max_rounds=2)
        assert set(seen) == {0.0}
