"""What clients measure, and that nobody else notices."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.client_analysis import ClientAnalyst
from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.risk import SensitivityMeasure, quantization_sensitivity
from fedhq_lightning.support.seeds import seed_generators
from fedhq_lightning.types import ClientId, FitOptions

from ..small_federation import SmallData, SmallModule, same_bits

CPU = torch.device("cpu")
SCHEME = QuantScheme("w2a8", edge_bits=None)


class Counting(SmallModule):
    """Keeps a buffer and a list that a step changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.steps: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += 1
        self.steps.append(1)
        return super().training_step(batch, batch_idx) * self.seen


class Draws(SmallData):
    """Its calibration batch is drawn from every global generator."""

    def calibration_batch(self, client_id: ClientId) -> Any:
        scale = 1 + random.random() + np.random.rand() + float(torch.rand(()))
        inputs, labels = super().calibration_batch(client_id)
        return inputs * scale, labels


def analyst(module: SmallModule, data: SmallData, scheme: QuantScheme = SCHEME) -> ClientAnalyst:
    return ClientAnalyst(module, scheme, LaneOptions(), FitOptions(), data, CPU)


@pytest.mark.parametrize("measure", ["sqnr", "loss"])
def test_measures_the_model_received_on_the_clients_batch(measure: SensitivityMeasure) -> None:
    module, data = SmallModule(), SmallData()
    received = {name: 1.5 * value for name, value in module.state_dict().items()}
    there = analyst(module, data)
    values = {each: there.sensitivity(each, measure, received) for each in data.client_ids}
    for client_id, value in values.items():
        other = SmallModule()
        other.load_state_dict(received)
        trainer, batch = ClientTrainer(other, FitOptions(), CPU), data.calibration_batch(client_id)

        def step(trainer: ClientTrainer = trainer, batch: Any = batch) -> Any:
            return trainer.run_step(batch)

        assert value == quantization_sensitivity(other, SCHEME, step, measure)
    assert len(set(values.values())) > 1
    assert there.sensitivity(0, measure) != values[0], "the initial model is another one"
    assert [there.sensitivity(each, measure, received) for each in reversed(data.client_ids)] == list(values.values())[
        ::-1
    ]


def test_depends_on_no_generator_and_leaves_everything_alone() -> None:
    module, data = Counting(), Draws()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = []
    for seed in (1, 2):
        seed_generators(seed)
        expected = random.random(), np.random.rand(), torch.rand(())
        seed_generators(seed)
        found.append([analyst(module, data).sensitivity(each, "loss") for each in (0, 1, 0)])
        assert (random.random(), np.random.rand(), torch.rand(())) == expected
    assert found[0] == found[1]
    assert found[0][0] == found[0][2] != found[0][1]
    assert same_bits(module.state_dict(), before)
    assert not module.steps


def test_a_client_without_a_batch_has_none() -> None:
    class Drops(SmallData):
        def train_dataloader(self, client_id: ClientId) -> DataLoader[Any]:
            return DataLoader(self.dataset(client_id), 16, drop_last=True)

    data = Drops()
    assert [analyst(SmallModule(), data).sensitivity(each, "sqnr") is None for each in data.client_ids] == [
        *(False, True, True, False)
    ]


def test_of_batch_statistics_that_no_batch_has_reached_nothing_is_told() -> None:
    module, data = SmallModule(), SmallData()
    module.net.insert(1, nn.BatchNorm1d(16))
    there = analyst(module, data)
    assert there.sensitivity(0, "sqnr") is None
    assert there.sensitivity(0, "sqnr", module.state_dict()) is not None  # what was received has been trained
    module.net[1].num_batches_tracked += 1
    assert analyst(module, data).sensitivity(0, "sqnr") is not None


def test_unknown_measure() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'loss'"):
        analyst(SmallModule(), SmallData()).sensitivity(0, "los")  # type: ignore[arg-type]  # the point


def test_accumulated_batches_change_nothing() -> None:
    data, values = SmallData(), list[Sequence[float | None]]()
    for batches in (1, 4):
        options = FitOptions(accumulate_grad_batches=batches)
        there = ClientAnalyst(SmallModule(), SCHEME, LaneOptions(), options, data, CPU)
        values.append([there.sensitivity(each, "loss") for each in data.client_ids])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
