"""QuantizedTraining in ordinary Lightning scripts."""

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LambdaCallback,
    ModelCheckpoint,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from torch import nn
from torchmetrics import MaxMetric

from fedhq_lightning.callbacks import QuantizedTraining
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import LaneOptions, QuantScheme, convert, prepare

from ..beside_lightning import lightning_trainer, lightning_validate, without_advice
from ..programs import run_program
from ..small_script import (
    NUM_FEATURES,
    ScriptModule,
    dataset,
    fit,
    floats,
    is_plain,
    quantized,
    same_weights,
    train_loader,
    val_loader,
)

LANES = {"fp": "Linear", "ptq": "PtqLinear", "qat": "QatLinear"}
EVERY_INT8 = LaneOptions(qat_kernel="int8", layer_kernels={"ptq": {"*": "int8"}})


class TestTraining:
    @pytest.mark.parametrize("mode", LANES)
    def test_trains_in_the_lane_and_validates_plain(self, mode: str) -> None:
        module = ScriptModule()
        fit(module, [quantized(mode)])
        assert {kind for stage, kind in module.seen if stage == "train"} == {LANES[mode]}
        assert {kind for stage, kind in module.seen if stage == "validate"} == {"Linear"}
        assert is_plain(module)

    @pytest.mark.parametrize("mode", LANES)
    def test_weights_are_those_of_a_prepared_module(self, mode: str) -> None:
        """To the last bit, dropout's draws among them, although the quantized model is evaluated on the way."""
        module, prepared = ScriptModule(), ScriptModule()
        fit(module, [quantized(mode, lanes=EVERY_INT8)])
        prepare(prepared, mode, QuantScheme("w4a8"), EVERY_INT8)  # type: ignore[arg-type]
        fit(prepared, [])
        assert same_weights(module, prepared)

    @pytest.mark.parametrize("settings", [
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"max_steps": 5, "val_check_interval": 2},
        {"limit_train_batches": 3, "limit_val_batches": 1},
        {"overfit_batches": 2},
    ], ids=str)  # fmt: skip
    def test_lane_stays_under_trainer_settings(self, settings: dict[str, Any]) -> None:
        module, plain = ScriptModule(), ScriptModule()
        trainer = fit(module, [quantized("qat")], **settings)
        fit(plain, [], **settings)
        assert {kind for stage, kind in module.seen if stage == "train"} == {"QatLinear"}
        assert not same_weights(module, plain)
        assert trainer.callback_metrics["quantized/val_loss"] != trainer.callback_metrics["val_loss"]
        assert module.net[0].weight.dtype == torch.float32

    def test_manual_optimization(self) -> None:
        class Manual(ScriptModule):
            automatic_optimization = False

            def training_step(self, batch: Any, batch_idx: int) -> None:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

        manual, automatic = Manual(), ScriptModule()
        fit(manual, [quantized("qat")])
        fit(automatic, [quantized("qat")])
        assert manual.seen == automatic.seen
        assert same_weights(manual, automatic)

    @pytest.mark.parametrize("how", ["torch.compile", "module.compile", "layer.compile"])
    def test_compiled(self, how: str) -> None:
        module, eager = ScriptModule(), ScriptModule()
        compiled: Any = module
        torch._dynamo.reset()
        if how == "torch.compile":
            compiled = torch.compile(module, backend="eager")
        else:
            (module if how == "module.compile" else module.net).compile(backend="eager")
        settings: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1}
        # Of `auto` a tracer gets fake quantization in small layers, whose gradients are of values.
        trainer = fit(compiled, [quantized("qat", lanes=EVERY_INT8)], num_sanity_val_steps=0, **settings)
        beside = fit(eager, [quantized("qat", lanes=EVERY_INT8)], num_sanity_val_steps=0, **settings)
        assert floats(trainer.callback_metrics) == pytest.approx(floats(beside.callback_metrics), abs=1e-5)
        assert trainer.callback_metrics["quantized/val_loss"] != trainer.callback_metrics["val_loss"]
        assert is_plain(module)

    def test_layers_built_in_configure_model(self) -> None:
        class Configured(ScriptModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = None  # type: ignore[assignment]

            def configure_model(self) -> None:
                if self.net is None:
                    self.net = self.layers()

        module = Configured()
        trainer = fit(module, [quantized("qat")])
        assert {kind for stage, kind in module.seen if stage == "train"} == {"QatLinear"}
        expected = lightning_validate(convert(module, QuantScheme("w4a8")), val_loader())
        assert float(trainer.callback_metrics["quantized/val_loss"]) == expected["val_loss"]

    @pytest.mark.parametrize("num_sanity_val_steps", [0, 1])
    def test_lazy_layers(self, num_sanity_val_steps: int) -> None:
        class Lazy(ScriptModule):
            def layers(self) -> nn.Sequential:
                return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(4))

        module = Lazy()
        trainer = fit(module, [quantized("qat")], num_sanity_val_steps=num_sanity_val_steps)
        assert module.seen[-4] == ("train", "QatLinear")
        assert "quantized/val_loss" in trainer.callback_metrics
        assert is_plain(module)

    def test_fit_twice(self) -> None:
        module, callback = ScriptModule(), quantized("qat")
        trainer = fit(module, [callback], max_epochs=1)
        trainer.fit_loop.max_epochs = 2
        with without_advice():
            trainer.fit(module, train_loader(), val_loader())
        assert [kind for stage, kind in module.seen if stage == "train"] == ["QatLinear"] * 12
        assert is_plain(module)

    @pytest.mark.parametrize("stage", ["training_step", "validation_step", "on_train_epoch_end"])
    @pytest.mark.parametrize("error", [RuntimeError("user's"), KeyboardInterrupt()], ids=["error", "interrupt"])
    def test_restores_the_module_whatever_happens(self, stage: str, error: BaseException) -> None:
        module = ScriptModule()

        def fail(*_: Any) -> None:
            raise error

        setattr(module, stage, fail)
        with pytest.raises((RuntimeError, SystemExit)):
            fit(module, [quantized("qat")], num_sanity_val_steps=0)
        assert is_plain(module)


class TestResume:
    @pytest.mark.parametrize("mode", ["ptq", "qat"])
    @pytest.mark.parametrize("every_n_train_steps", [None, 6])
    def test_same_bits_as_unbroken(self, mode: str, every_n_train_steps: int | None, tmp_path: Path) -> None:
        class NoDropout(ScriptModule):
            # Lightning does not keep the state of random number generators over a resume.
            def layers(self) -> nn.Sequential:
                return nn.Sequential(*(each for each in super().layers() if not isinstance(each, nn.Dropout)))

        unbroken, broken, resumed = NoDropout(), NoDropout(), NoDropout()
        settings: dict[str, Any] = {"enable_checkpointing": True}

        def callbacks() -> list[L.Callback]:
            saving = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=every_n_train_steps)
            return [quantized(mode, lanes=EVERY_INT8), saving]

        fit(unbroken, [quantized(mode, lanes=EVERY_INT8)], max_epochs=4)
        fit(broken, callbacks(), max_steps=10 if every_n_train_steps else -1, **settings)
        fit(resumed, callbacks(), ckpt_path="last", max_epochs=4, **settings)
        assert len(resumed.seen) < len(unbroken.seen)
        assert same_weights(unbroken, resumed)
        assert not same_weights(unbroken, broken)

    @pytest.mark.parametrize(("other", "named"), [
        (quantized("qat", "w8a8"), "scheme 'w4a8'"),
        (quantized("ptq", "w4a8"), "mode 'qat'"),
        (quantized("qat", QuantScheme("w4a8", edge_bits=None)), "edge_bits 8"),
    ])  # fmt: skip
    def test_refuses_another_scheme(self, other: QuantizedTraining, named: str, tmp_path: Path) -> None:
        trainer = fit(ScriptModule(), [quantized("qat")], max_epochs=1)
        trainer.save_checkpoint(tmp_path / "model.ckpt")
        with pytest.raises(ConfigurationError, match=named):
            fit(ScriptModule(), [other], ckpt_path=tmp_path / "model.ckpt")

    def test_evaluates_a_checkpoint_under_another_scheme(self, tmp_path: Path) -> None:
        module = ScriptModule()
        fit(module, [quantized("qat", "w4a8")], max_epochs=1).save_checkpoint(tmp_path / "model.ckpt")
        trainer = lightning_trainer(callbacks=[quantized("qat", "w2a8")])
        with without_advice():
            trainer.validate(ScriptModule(), val_loader(), ckpt_path=tmp_path / "model.ckpt", verbose=False)
        expected = lightning_validate(convert(module, QuantScheme("w2a8")), val_loader())
        assert float(trainer.callback_metrics["quantized/val_loss"]) == expected["val_loss"]

    @pytest.mark.parametrize("options", [None, LaneOptions(qat_kernel="fake")])
    def test_checkpoints_are_plain(self, options: LaneOptions | None, tmp_path: Path) -> None:
        """Also those that are saved in the middle of training."""
        settings: dict[str, Any] = {"enable_checkpointing": True, "max_steps": 5}
        saving = ModelCheckpoint(tmp_path, every_n_train_steps=3)
        fit(ScriptModule(), [quantized("qat", lanes=options), saving], **settings)
        assert b"fedhq" not in Path(saving.best_model_path).read_bytes()
        checkpoint = torch.load(saving.best_model_path, weights_only=True)
        ScriptModule().load_state_dict(checkpoint["state_dict"], strict=True)
        assert checkpoint["callbacks"]["QuantizedTraining"]["scheme"] == "w4a8"


class TestMetrics:
    @pytest.mark.parametrize("scheme", ["w4a8", "w3", "w2a8"])
    def test_are_those_of_the_converted_module(self, scheme: str) -> None:
        module = ScriptModule()
        trainer = fit(module, [quantized("qat", scheme)])
        expected = lightning_validate(convert(module, QuantScheme(scheme)), val_loader())
        fp = lightning_validate(module, val_loader())
        assert floats(trainer.callback_metrics) == {**fp, **{f"quantized/{k}": v for k, v in expected.items()}}
        with without_advice():
            validated = trainer.validate(module, val_loader(), verbose=False)
            tested = trainer.test(module, val_loader(), verbose=False)
        assert validated == [floats(fp) | {f"quantized/{k}": v for k, v in expected.items()}]
        assert tested[0]["quantized/test_loss"] == expected["val_loss"]

    def test_what_the_module_remembers_is_the_quantized_models_own(self) -> None:
        """Best values so far, in a metric and in an attribute, over the evaluations of one fit and a later one."""

        class Best(ScriptModule):
            def __init__(self) -> None:
                super().__init__(learning_rate=1.0)  # so that the loss goes up and down
                self.highest, self.losses = MaxMetric(), list[float]()

            def on_validation_epoch_end(self) -> None:
                self.highest.update(self.loss)
                self.losses.append(self.loss)
                self.log_dict({"loss": self.loss, "highest": self.highest.compute(), "lowest": min(self.losses)})

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.loss = float(nn.functional.cross_entropy(self(batch[0]), batch[1]))

        seen: list[dict[str, float]] = []
        record = LambdaCallback(on_validation_end=lambda trainer, module: seen.append(floats(trainer.callback_metrics)))
        module = Best()
        callbacks = [quantized("qat", "w2a8", export=False), record]
        trainer = fit(module, callbacks, max_epochs=5, num_sanity_val_steps=0)
        with without_advice():
            trainer.validate(module, val_loader(), verbose=False)
        for prefix in ("", "quantized/"):
            losses = [each[f"{prefix}loss"] for each in seen]
            assert len(losses) == 6
            assert [each[f"{prefix}highest"] for each in seen] == [max(losses[: i + 1]) for i in range(6)]
            assert [each[f"{prefix}lowest"] for each in seen] == [min(losses[: i + 1]) for i in range(6)]

    def test_can_be_monitored(self, tmp_path: Path) -> None:
        stopping = EarlyStopping("quantized/val_loss", patience=1, min_delta=10)
        saving = ModelCheckpoint(tmp_path, monitor="quantized/val_loss", filename="{epoch}-{quantized/val_loss:.3f}")
        logger = CSVLogger(tmp_path)
        settings: dict[str, Any] = {"enable_checkpointing": True, "max_epochs": 5, "logger": logger}
        trainer = fit(ScriptModule(), [stopping, saving, quantized("qat")], **settings)
        assert trainer.current_epoch == 2
        best = ScriptModule.load_from_checkpoint(saving.best_model_path)
        expected = lightning_validate(convert(best, QuantScheme("w4a8")), val_loader())["val_loss"]
        assert float(saving.best_model_score) == expected
        assert f"{expected}" in Path(logger.log_dir, "metrics.csv").read_text()
        assert "quantized/val_loss" in trainer.progress_bar_metrics
        assert "quantized/val_accuracy" not in trainer.progress_bar_metrics

    @pytest.mark.parametrize("averaging", [WeightAveraging, EMAWeightAveraging])
    @pytest.mark.parametrize("first", [True, False])
    def test_are_those_of_averaged_weights(self, averaging: type[WeightAveraging], first: bool, tmp_path: Path) -> None:
        module, callback = ScriptModule(), quantized("qat", export=first, dirpath=tmp_path / "model")
        callbacks: list[L.Callback] = [averaging(), callback] if first else [callback, averaging()]
        trainer = fit(module, callbacks)
        expected = lightning_validate(convert(module, QuantScheme("w4a8")), val_loader())
        assert float(trainer.callback_metrics["quantized/val_loss"]) == expected["val_loss"]
        beside = ScriptModule()
        fit(beside, [quantized("qat")])
        assert not same_weights(module, beside)
        if first:
            written = load_file(tmp_path / "model" / "weights.safetensors")
            assert all(torch.equal(value, written[key]) for key, value in module.state_dict().items())

    def test_several_loaders(self) -> None:
        class Several(ScriptModule):
            def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
                super().validation_step(batch, batch_idx)

        module, loaders = Several(), [val_loader(), val_loader(24)]
        metrics = floats(fit(module, [quantized("qat")], val_dataloaders=loaders).callback_metrics)
        expected = lightning_validate(convert(module, QuantScheme("w4a8")), loaders)
        assert "val_loss/dataloader_idx_1" in expected
        assert {name: metrics[f"quantized/{name}"] for name in expected} == expected

    def test_without_validation(self) -> None:
        class NoValidation(ScriptModule):
            validation_step = L.LightningModule.validation_step

        callback = quantized("qat", export=True)
        assert not fit(NoValidation(), [callback]).callback_metrics
        assert callback.deployed_path == Path.cwd() / "model" / "model.pt2"


class TestDeployment:
    def test_deployed_program_is_the_converted_module(self, tmp_path: Path) -> None:
        module, callback = ScriptModule(), quantized("qat", export=True)
        logger = CSVLogger(tmp_path, name="experiment", version=7)
        trainer = fit(module, [callback], logger=logger)
        folder = tmp_path / "experiment" / "version_7" / "model"
        assert callback.deployed_path == folder / "model.pt2"
        x = dataset(9, seed=5).tensors[0]
        with torch.no_grad():
            assert torch.equal(
                torch.export.load(callback.deployed_path).module()(x), convert(module, QuantScheme("w4a8"))(x)
            )
        readme = (folder / "README.md").read_text()
        assert "ScriptModule" in readme
        assert f"{float(trainer.callback_metrics['quantized/val_loss']):.6g}" in readme

    def test_deploys_a_checkpoint(self, tmp_path: Path) -> None:
        module, callback = ScriptModule(), quantized("qat")
        fit(module, [callback], max_epochs=1)
        best = ScriptModule()
        path = callback.deploy(best, tmp_path / "best" / "model")
        x = dataset(3, seed=5).tensors[0]
        with torch.no_grad():
            assert torch.equal(torch.export.load(path).module()(x), convert(best, QuantScheme("w4a8"))(x))

    def test_a_rehearsal_or_a_fit_without_export_leaves_nothing(self) -> None:
        fit(ScriptModule(), [quantized("qat", export=True)], fast_dev_run=True)
        fit(ScriptModule(), [quantized("qat")])
        assert not list(Path.cwd().iterdir())


class TestRefusals:
    @pytest.mark.parametrize(("arguments", "message"), [
        ({"mode": "qta"}, "mode 'qta': allowed are fp, ptq, qat; did you mean 'qat'"),
        ({"scheme": "w9a8"}, "weight bits must be 2..8"),
        ({"lanes": LaneOptions(bias_correction=True)}, "bias_correction"),
    ])  # fmt: skip
    def test_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            QuantizedTraining(**arguments)

    @pytest.mark.parametrize(("callbacks", "message"), [
        ([quantized("qat", "w4a8-g5")], "a group of 5 does not divide"),
        ([quantized("qat", QuantScheme("w4a8", overrides={"nett.*": "fp"}))], "override 'nett.*' matches no layer"),
        ([quantized("qat", lanes=LaneOptions(layer_kernels={"qat": {"head": "fake"}}))], "'head' matches no layer"),
    ])  # fmt: skip
    def test_before_the_first_step(self, callbacks: list[L.Callback], message: str) -> None:
        module = ScriptModule()
        with pytest.raises(ConfigurationError, match=message):
            fit(module, callbacks)
        assert not module.seen

    def test_two_of_them(self) -> None:
        with pytest.raises(RuntimeError, match="more than one stateful callback of type `QuantizedTraining`"):
            fit(ScriptModule(), [quantized("qat"), quantized("ptq")])

    def test_with_federated_averaging(self) -> None:
        kind = type("FederatedAveraging", (L.Callback,), {})
        with pytest.raises(ConfigurationError, match="together with FederatedAveraging"):
            fit(ScriptModule(), [quantized("qat"), kind()])

    def test_nothing_to_quantize(self) -> None:
        class Normed(ScriptModule):
            def layers(self) -> nn.Sequential:
                return nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(NUM_FEATURES))

        with pytest.raises(ConfigurationError, match="Normed has nothing to quantize under scheme 'w4a8'"):
            fit(Normed(), [quantized("qat")])


def test_arguments_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=L.Callback)
    written = """
    callback:
      class_path: fedhq_lightning.callbacks.QuantizedTraining
      init_args: {mode: ptq, scheme: w3a8-g4, lanes: {qat_kernel: fake}, export: false, dirpath: out}
    """
    parsed = parser.parse_string(written)
    assert yaml.safe_load(parser.dump(parsed))["callback"]["init_args"]["scheme"] == "w3a8-g4"
    callback = parser.instantiate(parsed).callback
    assert isinstance(callback, QuantizedTraining)
    assert (callback.mode, str(callback.scheme), callback.lanes) == ("ptq", "w3a8-g4", LaneOptions(qat_kernel="fake"))


_DDP_SCRIPT = """
import json, os, sys
import torch
from torch.utils.data import DataLoader
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.small_script import ScriptModule, dataset, fit, floats, is_plain, quantized, val_loader

if __name__ == "__main__":
    module, callback = ScriptModule(), quantized(sys.argv[1], export=True)
    saving = ModelCheckpoint("checkpoints", monitor="quantized/val_loss")
    trainer = fit(module, [callback, saving], devices=2, strategy="ddp", enable_checkpointing=True)
    result = {
        "metrics": floats(trainer.callback_metrics),
        "validated": trainer.validate(module, val_loader(), verbose=False)[0],
        "weights": [value.double().sum().item() for value in module.state_dict().values()],
        "lanes": sorted({kind for stage, kind in module.seen if stage == "train"}),
        "plain": is_plain(module),
        "deployed": str(callback.deployed_path),
        "best": saving.best_model_path,
    }
    with open(f"rank{trainer.global_rank}.json", "w") as file:
        json.dump(result, file)
"""


def test_two_processes_under_ddp() -> None:
    Path("script.py").write_text(_DDP_SCRIPT)
    run_program("script.py", "qat", env=os.environ | {"PYTHONWARNINGS": "ignore"}).check_returncode()
    first, second = (json.loads(Path(f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["lanes"] == second["lanes"] == ["QatLinear"]
    assert all(each["plain"] for each in (first, second))
    for name in ("weights", "deployed", "best"):
        assert first[name] == second[name], name
    for name in ("quantized/val_loss", "quantized/val_accuracy"):
        assert first["metrics"][name] == second["metrics"][name] == first["validated"][name]
    assert Path(first["deployed"]).exists()
    written = load_file(Path(first["deployed"]).parent / "weights.safetensors")
    assert sorted(value.double().sum().item() for value in written.values()) == sorted(first["weights"])


class NormedScript(ScriptModule):
    """With batch normalization."""

    def layers(self) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


class TestBatchStatistics:
    """The quantized model has those of its own forward passes, on the last batches of training."""

    @torch.no_grad()
    def by_hand(self, module: NormedScript, scheme: str) -> nn.Module:
        """Of the last four batches, each normalized by its own; `convert` and a mean of moments."""
        torch.manual_seed(3)
        batches = [inputs for inputs, _ in train_loader()][-4:]
        converted = convert(copy.deepcopy(module.net), QuantScheme(scheme)).eval()
        values = torch.cat([converted[0](inputs) for inputs in batches])
        converted[1].running_mean.copy_(values.mean(0))
        converted[1].running_var.copy_(values.var(0, correction=0))
        return converted

    @pytest.mark.parametrize("mode", LANES)
    def test_metrics_and_the_deployed_model_are_theirs(self, mode: str) -> None:
        module, callback = NormedScript(), quantized(mode, "w2a4", export=True)
        trainer = fit(module, [callback])
        converted = self.by_hand(module, "w2a4")
        batches = list(val_loader())
        with torch.no_grad():
            losses = [nn.functional.cross_entropy(converted(inputs), labels) for inputs, labels in batches]
        loss = sum(each * len(labels) for each, (_, labels) in zip(losses, batches, strict=True)) / 40
        assert float(trainer.callback_metrics["quantized/val_loss"]) == pytest.approx(float(loss), rel=1e-4)
        assert callback.deployed_path is not None
        program = torch.export.load(callback.deployed_path).module()
        torch.testing.assert_close(program(batches[0][0]), converted(batches[0][0]), rtol=1e-4, atol=1e-5)
        held = load_file(callback.deployed_path.with_name("deployed_statistics.safetensors"))
        assert sorted(held) == ["net.1.running_mean", "net.1.running_var"]
        assert not torch.equal(held["net.1.running_mean"], module.net[1].running_mean)
        logged = floats(trainer.callback_metrics)
        with without_advice():
            assert trainer.validate(module, val_loader(), verbose=False)[0] == logged

    def test_training_is_as_without(self) -> None:
        module, prepared = NormedScript(), NormedScript()
        fit(module, [quantized("qat", lanes=EVERY_INT8)])
        prepare(prepared, "qat", QuantScheme("w4a8"), EVERY_INT8)
        fit(prepared, [])
        assert same_weights(module, prepared)

    def test_those_of_a_frozen_layer_stay(self) -> None:
        class Frozen(NormedScript):
            def on_train_epoch_start(self) -> None:
                self.net[1].eval()

        module, callback = Frozen(), quantized("ptq", "w2a4", export=True)
        fit(module, [callback])
        assert callback.deployed_path is not None
        assert not callback.deployed_path.with_name("deployed_statistics.safetensors").exists()

    def test_a_checkpoints_model_is_validated_with_its_own_in_another_process(self) -> None:
        saving = ModelCheckpoint("checkpoints", save_last=True)
        module = NormedScript()
        trainer = fit(module, [quantized("ptq", "w2a4"), saving], enable_checkpointing=True)
        fresh = lightning_trainer(callbacks=[quantized("ptq", "w2a4")], default_root_dir=Path.cwd())
        with without_advice():
            found = fresh.validate(NormedScript(), val_loader(), ckpt_path=saving.last_model_path, verbose=False)[0]
        assert found == floats(trainer.callback_metrics)

    def test_deploy_takes_those_of_the_weights_that_it_is_given(self, tmp_path: Path) -> None:
        module, callback = NormedScript(), quantized("ptq", "w2a4")
        fit(module, [callback])
        other = NormedScript()
        path = callback.deploy(other, tmp_path / "other")
        converted = self.by_hand(other, "w2a4")
        inputs = next(iter(val_loader()))[0]
        torch.testing.assert_close(torch.export.load(path).module()(inputs), converted(inputs), rtol=1e-4, atol=1e-5)

    def test_a_step_that_does_not_run_on_a_copy_is_told(self) -> None:
        class Particular(NormedScript):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                if not isinstance(self.net[0], nn.Linear):
                    raise RuntimeError("it wants a Linear")
                return super().training_step(batch, batch_idx)

        trainer = lightning_trainer(callbacks=[quantized("ptq", "w2a4")], max_epochs=1, default_root_dir=Path.cwd())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.fit(Particular(), train_loader(), val_loader())
        told = [str(each.message) for each in said if "BatchNorm" in str(each.message)]
        assert len(told) == 1
        assert "those of the float32 one, since training_step did not run on a copy" in told[0]
        assert told[0].endswith("(RuntimeError: it wants a Linear)")
        assert float(trainer.callback_metrics["quantized/val_loss"]) > 0
