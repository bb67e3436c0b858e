"""QuantizedPrecision trains as the callback does, in a Trainer and in Fabric."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.cli import LightningCLI
from torch import nn

from fedhq_lightning import QuantizedPrecision
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import LaneOptions, QuantScheme, prepare

from ..beside_lightning import lightning_trainer, without_advice
from ..small_script import ScriptModule, fit, is_plain, quantized, same_weights, train_loader, val_loader

LANES = {"fp": "Linear", "ptq": "PtqLinear", "qat": "QatLinear"}
EVERY_INT8 = LaneOptions(qat_kernel="int8", layer_kernels={"ptq": {"*": "int8"}})


@pytest.mark.parametrize("mode", LANES)
def test_a_trainer_gets_the_callback_s_bits(mode: Any) -> None:
    """Validation, which has plain layers, stands between the epochs."""
    plugged, called = ScriptModule(), ScriptModule()
    settings = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    fit(plugged, [], plugins=QuantizedPrecision(mode, "w4a8", EVERY_INT8), **settings)
    fit(called, [quantized(mode, lanes=EVERY_INT8)], **settings)
    assert same_weights(plugged, called)
    assert {kind for stage, kind in plugged.seen if stage == "train"} == {LANES[mode]}
    assert {kind for stage, kind in plugged.seen if stage == "validate"} == {"Linear"}
    assert is_plain(plugged)


def test_lazy_layers_train_in_the_lane_from_the_second_step_on_as_with_the_callback() -> None:
    class Lazy(ScriptModule):
        def layers(self) -> nn.Sequential:
            torch.manual_seed(0)
            return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(4))

    plugged, called = Lazy(), Lazy()
    fit(plugged, [], plugins=QuantizedPrecision("qat", "w4a8", EVERY_INT8), num_sanity_val_steps=0)
    fit(called, [quantized("qat", lanes=EVERY_INT8)], num_sanity_val_steps=0)
    assert same_weights(plugged, called)
    assert [kind for _, kind in plugged.seen[:2]] == ["LazyLinear", "QatLinear"]


def test_the_module_is_plain_after_a_fit_that_failed() -> None:
    class Failing(ScriptModule):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("mine")

    module = Failing()
    with pytest.raises(RuntimeError, match="mine"):
        fit(module, [], plugins=QuantizedPrecision("ptq"))
    assert ("train", "PtqLinear") in module.seen
    assert is_plain(module)


@pytest.mark.parametrize("mode", LANES)
@pytest.mark.parametrize("uses_closure", [False, True])
def test_fabric_gets_the_bits_of_a_prepared_module(mode: Any, uses_closure: bool) -> None:
    def trained(module: nn.Module, fabric: Fabric) -> list[torch.Tensor]:
        own = module
        torch.manual_seed(5)
        module, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
        held_out = next(iter(val_loader()))[0]
        evaluated = []
        for _ in range(2):
            module.train()
            for inputs, labels in train_loader():

                def closure(inputs: torch.Tensor = inputs, labels: torch.Tensor = labels) -> torch.Tensor:
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(module(inputs), labels)
                    fabric.backward(loss)
                    return loss

                if uses_closure:
                    optimizer.step(closure)
                else:
                    closure()
                    fabric.clip_gradients(module, optimizer, max_norm=0.5)
                    optimizer.step()
            module.eval()
            evaluated.append(module(held_out).detach())
            assert is_plain(own) or fabric is beside
        return evaluated

    beside = Fabric(accelerator="cpu", devices=1)
    plugin = QuantizedPrecision(mode, "w4a8", EVERY_INT8)
    plugged, prepared, plain = ScriptModule().net, ScriptModule().net, ScriptModule().net
    evaluated = trained(plugged, Fabric(accelerator="cpu", devices=1, plugins=plugin))
    prepare(prepared, mode, QuantScheme("w4a8"), EVERY_INT8)
    trained(prepared, beside)
    assert same_weights(plugged, prepared)
    plain.load_state_dict(plugged.state_dict())
    with torch.no_grad():
        assert torch.equal(plain.eval()(next(iter(val_loader()))[0]), evaluated[-1])
    plugged.train()
    with plugin.forward_context():
        assert is_plain(plugged) is (mode == "fp")
    plugin.teardown()
    assert is_plain(plugged)


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="mode 'qta': allowed are fp, ptq, qat; did you mean 'qat'"):
        QuantizedPrecision("qta")  # type: ignore[arg-type]  # misspelt on purpose
    with pytest.raises(ConfigurationError, match="QuantizedPrecision: scheme 'w4a8s' has static activation ranges"):
        QuantizedPrecision("qat", "w4a8s")
    with pytest.raises(ConfigurationError, match="QuantizedPrecision together with QuantizedTraining"):
        fit(ScriptModule(), [quantized("qat")], plugins=QuantizedPrecision("qat"))
    fabric = L.Fabric(accelerator="cpu", devices=1, plugins=QuantizedPrecision("qat", "w4a8-g5"))
    with pytest.raises(ConfigurationError, match="5"):
        fabric.setup(ScriptModule().net)
    trainer = lightning_trainer(max_epochs=1, plugins=QuantizedPrecision("qat", "w4a8-g5"))
    with pytest.raises(ConfigurationError, match="5"), without_advice():
        trainer.fit(ScriptModule(), train_loader(), val_loader())


@pytest.mark.parametrize("key", ["plugins", "callbacks"])
def test_lightning_cli_takes_plugin_and_callback_by_class_path(key: str, tmp_path: Path) -> None:
    classes = {"plugins": "QuantizedPrecision", "callbacks": "callbacks.QuantizedTraining"}
    init_args = {"mode": "ptq", "scheme": "w4a8"}
    given = {"class_path": f"fedhq_lightning.{classes[key]}", "init_args": init_args}
    settings = {"accelerator": "cpu", "devices": 1, "fast_dev_run": True, "default_root_dir": str(tmp_path)}
    shown = {"enable_progress_bar": False, "enable_model_summary": False}

    class Data(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            return train_loader()

        def val_dataloader(self) -> Any:
            return val_loader()

    with without_advice():
        cli = LightningCLI(
            ScriptModule, Data, args={"fit": {"trainer": {**settings, **shown, key: given}}}, save_config_callback=None
        )
    assert {kind for stage, kind in cli.model.seen if stage == "train"} == {"PtqLinear"}
    assert is_plain(cli.model)
