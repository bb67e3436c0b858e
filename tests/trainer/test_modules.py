"""LightningModules of many kinds, none of them made for this trainer."""

import copy
import math
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.errors import ConfigurationError

from ..beside_lightning import lightning_fit
from ..small_federation import NUM_FEATURES, SmallData, SmallModule, same_bits, trainer
from .runs import fit, last_state, records


@pytest.mark.usefixtures("quick")
class TestModules:
    def test_the_users_module_gets_the_weights_and_nothing_else(self) -> None:
        module = SmallModule()
        names, kind = set(vars(module)), dict(vars(SmallModule))
        before = copy.deepcopy(module.state_dict())
        done, _ = fit(module, scheme="w4a8", callbacks=FixedAllocator("qat"))
        assert set(vars(module)) == names
        assert dict(vars(SmallModule)) == kind
        assert module._trainer is None
        assert module.training
        assert type(module.net[0]) is nn.Linear
        assert all(parameter.grad is None for parameter in module.parameters())
        assert same_bits(module.state_dict(), load_file(done.run_dir / "model" / "weights.safetensors"))
        assert not same_bits(module.state_dict(), before)

    def test_a_module_of_lightnings_trainer_may_go_on_here(self) -> None:
        module = SmallModule()
        lightning_fit(module, SmallData().train_dataloader(0))
        fit(module, max_rounds=1)

    def test_without_validation_step(self) -> None:
        class TrainsOnly(SmallModule):
            validation_step = L.LightningModule.validation_step

        done, _ = fit(TrainsOnly(), scheme="w4a8", callbacks=FixedAllocator("ptq"))
        assert done.summary["metric_name"] == "train_loss"
        assert done.summary["metric_fp"] == min(each.metrics["train/train_loss"] for each in records(done)[1:])
        assert done.summary["metric_quantized"] is None
        assert done.summary["worst_client"] is None
        assert done.summary["export"] == "packed"
        assert "example_input_array" in done.summary["export_reason"]

    def test_nothing_logged(self) -> None:
        class Silent(SmallModule):
            validation_step = L.LightningModule.validation_step

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return nn.functional.cross_entropy(self(batch[0]), batch[1])

        done, _ = fit(Silent())
        assert (done.summary["metric_name"], done.summary["metric_fp"], done.summary["best_round"]) == (
            None,
            None,
            None,
        )
        assert same_bits(load_file(done.run_dir / "model" / "weights.safetensors"), last_state(done))

    def test_running_statistics_are_averaged_where_asked_and_counts_stay(self) -> None:
        class Normed(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.net.insert(1, nn.BatchNorm1d(16))

        data = SmallData((16, 48))
        settings: dict[str, Any] = {"max_rounds": 1, "retake_batch_statistics": False}
        _, state = fit(Normed(), data, **settings)
        assert state["net.1.num_batches_tracked"].item() == 0
        means = []
        for client_id in data.client_ids:
            alone = SmallData({client_id: data.sizes[client_id]})
            alone.dataset = data.dataset  # type: ignore[method-assign]  # the same examples
            means.append(fit(Normed(), alone, **settings)[1]["net.1.running_mean"])
        torch.testing.assert_close(state["net.1.running_mean"], (16 * means[0] + 48 * means[1]) / 64)
        fit(Normed(), data, scheme="w4a8", callbacks=FixedAllocator(0.5), **settings)

    def test_tied_weights_stay_tied(self) -> None:
        class Tied(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
                self.net[2].weight = self.net[0].weight

        for settings in ({}, {"scheme": "w4a8", "callbacks": FixedAllocator("qat")}):
            module = Tied()
            _, state = fit(module, **settings)
            assert module.net[0].weight is module.net[2].weight
            assert same_bits({"w": state["net.0.weight"]}, {"w": state["net.2.weight"]})

    def test_layers_built_in_setup_and_configure_model(self) -> None:
        class Late(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential()
                self.order: list[str] = []

            def setup(self, stage: str) -> None:
                self.order.append("setup")
                torch.manual_seed(0)
                self.width = 16

            def configure_model(self) -> None:
                if len(self.net):
                    return
                assert self.order == ["setup"], "Lightning calls setup first"
                self.net = nn.Sequential(nn.Linear(NUM_FEATURES, self.width), nn.ReLU(), nn.Linear(self.width, 3))

        module = Late()
        done, _ = fit(module)
        assert same_bits(module.state_dict(), load_file(done.run_dir / "model" / "weights.safetensors"))

    def test_setup_may_look_at_the_trainer(self) -> None:
        class Looks(SmallModule):
            def setup(self, stage: str) -> None:
                assert stage == "fit"
                assert self.trainer.max_epochs == 3

        fit(Looks(), max_rounds=1, local_epochs=3)

    def test_lazy_layers_get_their_sizes_from_a_clients_batch(self) -> None:
        module = SmallModule()
        module.net[0] = nn.LazyLinear(16)
        done, _ = fit(module, scheme="w4a8", callbacks=FixedAllocator("qat"))
        assert type(module.net[0]) is nn.Linear
        assert module.net[0].weight.shape == (16, NUM_FEATURES)
        assert same_bits(module.state_dict(), load_file(done.run_dir / "model" / "weights.safetensors"))
        assert trainer(scheme="w4a8").validate(module, SmallData())

    def test_lazy_layers_that_no_batch_reaches_are_refused_by_name(self) -> None:
        module = SmallModule()
        module.unused = nn.LazyLinear(16)
        with pytest.raises(ConfigurationError, match=r"unused\.weight.*lazy"):
            fit(module)

    def test_a_metric_that_is_never_finite_ends_well(self) -> None:
        class Diverges(SmallModule):
            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self(batch[0])
                self.log("val_loss", math.nan)

        done, _ = fit(Diverges(), scheme="w4a8", callbacks=FixedAllocator("ptq"))
        assert done.summary["metric_fp"] is None
        assert done.summary["metric_quantized"] is None
        assert done.summary["best_round"] is None
        assert math.isnan(records(done)[2].metrics["fp/val_loss"])
