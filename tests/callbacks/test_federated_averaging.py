"""What `FederatedAveraging` refuses, and one silo in this process."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.demos.boring_classes import BoringModel
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from fedhq_lightning.callbacks import FederatedAveraging, FixedAllocator, HybridAllocator, QuantizedTraining, allocators
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedProx
from fedhq_lightning.quantize import LaneOptions, QuantScheme, convert
from fedhq_lightning.silos import silo_run
from fedhq_lightning.silos.silo_context import label_counts

from ..silos.silo_runs import one_silo
from ..small_federation import SmallModule, examples, same_bits

# Lightning's own, about loaders without worker processes and the like.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:.*was called without a model"),
    pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available"),
]


@pytest.fixture
def silo() -> Iterator[dict[str, Any]]:
    with one_silo() as settings:
        yield settings


def loader(count: int = 20, **settings: Any) -> DataLoader[Any]:
    return DataLoader(examples(count, 1), batch_size=8, **settings)


def averaging(**settings: Any) -> FederatedAveraging:
    return FederatedAveraging(**({"scheme": "w4a8", "export": False} | settings))


class Numbers(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(examples(16, 1))


class Lazy(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(3))


class TestArguments:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"every_n_epochs": 0}, "every_n_epochs 0: must be a whole number"),
            ({"uplink": "weight"}, "did you mean 'weights'"),
            ({"scheme": "w9a8"}, "weight bits"),
            ({"lanes": LaneOptions(bias_correction=True)}, "bias_correction"),
        ],
    )
    def test_refuses(self, given: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            FederatedAveraging(**given)


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"strategy": "auto"}, r"needs Trainer\(strategy='fedhq'\), got SingleDeviceStrategy"),
            ({"use_distributed_sampler": True}, "set use_distributed_sampler=False"),
            ({"max_steps": 5}, "max_steps=5.*set max_epochs"),
            ({"min_steps": 5}, "min_steps=5.*set min_epochs"),
            ({"val_check_interval": 0.5}, "val_check_interval=0.5"),
            ({"val_check_interval": 2}, "val_check_interval=2"),
            ({"val_check_interval": "00:00:01:00"}, "val_check_interval"),
            ({"sync_batchnorm": True}, "sync_batchnorm=True"),
        ],
    )
    def test_settings(self, silo: dict[str, Any], given: dict[str, Any], words: str) -> None:
        trainer = pl.Trainer(**(silo | given), callbacks=[averaging()])
        with pytest.raises(ConfigurationError, match=words):
            trainer.fit(SmallModule(), loader(), loader())

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: [averaging(), QuantizedTraining()], "together with"),
            (lambda: [averaging(), HybridAllocator(), FixedAllocator()], "2 allocators"),
            (lambda: [averaging(scheme=None), HybridAllocator()], "has no scheme"),
            (lambda: [averaging(every_n_epochs=2)], "set check_val_every_n_epoch to 2"),
            (lambda: [averaging(), ModelCheckpoint(every_n_train_steps=2)], "set every_n_epochs instead"),
            (lambda: [averaging(), ModelCheckpoint(save_on_exception=True)], "ModelCheckpoint on exceptions"),
            (
                lambda: [averaging(every_n_epochs=2), ModelCheckpoint(save_weights_only=True)],
                "leave save_weights_only out",
            ),
            (lambda: [averaging(), OnExceptionCheckpoint(".")], "OnExceptionCheckpoint on exceptions"),
            (lambda: [averaging(), WeightAveraging()], "leave WeightAveraging out"),
            (lambda: [averaging(), StochasticWeightAveraging(0.1)], "leave StochasticWeightAveraging out"),
            (lambda: [averaging(), LearningRateFinder()], "run it on one device first"),
            (lambda: [HybridAllocator()], "HybridAllocator without FederatedAveraging"),
            (lambda: [], "strategy 'fedhq' without FederatedAveraging"),
            (lambda: [averaging(scheme=QuantScheme("w4a8", overrides={"nett.*": "fp"}))], "nett"),
            (lambda: [averaging(fleet="mixd")], "did you mean 'mixed'"),
            (lambda: [averaging(), FixedAllocator({0: "qat", 1: "ptq"})], "names client '1'"),
        ],
    )
    def test_companions(self, silo: dict[str, Any], make: Any, words: str) -> None:
        trainer = pl.Trainer(**(silo | {"enable_checkpointing": True}), callbacks=make())
        with pytest.raises(ConfigurationError, match=words):
            trainer.fit(SmallModule(), loader(), loader())

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: loader(sampler=DistributedSampler(examples(20, 1), 1, 0)), "has a DistributedSampler"),
            (lambda: DataLoader(Numbers(), batch_size=8), "has no length"),
        ],
    )
    def test_loaders(self, silo: dict[str, Any], make: Any, words: str) -> None:
        trainer = pl.Trainer(**silo, callbacks=[averaging()])
        with pytest.raises(ConfigurationError, match=words):
            trainer.fit(SmallModule(), make())

    def test_lazy_layers(self, silo: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match="call the module once on a batch"):
            pl.Trainer(**silo, callbacks=[averaging()]).fit(Lazy(), loader())

    def test_layers_that_wait_for_other_processes(self, silo: dict[str, Any]) -> None:
        module = SmallModule()
        module.net.append(nn.SyncBatchNorm(3))
        with pytest.raises(ConfigurationError, match=r"SmallModule\.net\.\d+ is a SyncBatchNorm.*nn\.BatchNorm"):
            pl.Trainer(**silo, callbacks=[averaging()]).fit(module, loader())

    def test_a_checkpoint_within_an_epoch(self, silo: dict[str, Any]) -> None:
        class Saves(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                trainer.save_checkpoint("here.ckpt")

        with pytest.raises(ConfigurationError, match="save at the end of an epoch"):
            pl.Trainer(**silo, callbacks=[averaging(), Saves()]).fit(SmallModule(), loader())


class TestOneSilo:
    def test_a_round_of_fp_changes_nothing(self, silo: dict[str, Any]) -> None:
        """The average of one silo is its own model, so training is that of an ordinary Trainer."""
        federated, ordinary = SmallModule(), SmallModule()
        pl.Trainer(**silo, callbacks=[averaging(scheme=None)]).fit(federated, loader(), loader())
        plain = {key: value for key, value in silo.items() if key not in ("strategy", "use_distributed_sampler")}
        pl.Trainer(**plain).fit(ordinary, loader(), loader())
        assert same_bits(federated.state_dict(), ordinary.state_dict())

    def test_batch_statistics_are_taken_anew_for_both_views(self, silo: dict[str, Any], tmp_path: Path) -> None:
        class Normed(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.net.insert(1, nn.BatchNorm1d(16))

        module = Normed()
        trainer = pl.Trainer(
            **silo, callbacks=[averaging(scheme="w2a4", export=True, dirpath=tmp_path / "model"), FixedAllocator("ptq")]
        )
        trainer.fit(module, loader(), loader())
        first = next(iter(loader()))[0]
        for layer, held in (
            (module.net[0], module.state_dict()),
            (
                convert(copy.deepcopy(module.net), QuantScheme("w2a4"))[0],
                load_file(tmp_path / "model" / "deployed_statistics.safetensors"),
            ),
        ):
            values = layer(first).detach()
            torch.testing.assert_close(held["net.1.running_mean"], values.mean(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(held["net.1.running_var"], values.var(0, correction=0), rtol=1e-4, atol=1e-5)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "val_" in name}
        assert trainer.validate(module, loader(), verbose=False)[0] == logged

    def test_a_teacher_without_gradients_travels_too(self, silo: dict[str, Any]) -> None:
        """Hooks change it, as in BYOL; it would stay as it was in the first round."""

        class Teaches(SmallModule):
            def __init__(self) -> None:
                super().__init__()
                self.teacher = nn.Linear(12, 16).requires_grad_(False)
                nn.init.zeros_(self.teacher.weight)
                nn.init.zeros_(self.teacher.bias)

            def on_train_batch_end(self, *_: Any) -> None:
                self.teacher.weight.lerp_(self.net[0].weight.detach(), 0.1)

        federated, ordinary = Teaches(), Teaches()
        pl.Trainer(**silo, callbacks=[averaging(scheme=None)]).fit(federated, loader(), loader())
        plain = {key: value for key, value in silo.items() if key not in ("strategy", "use_distributed_sampler")}
        pl.Trainer(**plain).fit(ordinary, loader(), loader())
        assert ordinary.teacher.weight.any()
        assert same_bits(federated.state_dict(), ordinary.state_dict())

    @pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
    def test_batches_that_are_all_skipped_leave_the_model_as_it_was(self, silo: dict[str, Any]) -> None:
        class Skips(SmallModule):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                super().training_step(batch, batch_idx)
                with torch.no_grad():
                    self.net[0].weight += 1  # as BatchNorm's statistics would move

        module = Skips()
        with (
            pytest.warns(UserWarning, match="round 1: 1 of 1 silos took no step, so they send nothing"),
            pytest.warns(UserWarning, match="round 1: no usable update arrived"),
        ):
            pl.Trainer(**silo | {"max_epochs": 1}, callbacks=[averaging(scheme=None)]).fit(module, loader())
        assert same_bits(module.state_dict(), SmallModule().state_dict())

    def test_trains_in_the_lane_of_the_plan(self, silo: dict[str, Any]) -> None:
        class Watches(pl.Callback):
            trained: list[str] = []  # noqa: RUF012
            validated: list[str] = []  # noqa: RUF012

            def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
                self.trained.append(type(pl_module.net[0]).__name__)

            def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
                self.validated.append(type(pl_module.net[0]).__name__)

        watches, module = Watches(), SmallModule()
        pl.Trainer(**silo, callbacks=[averaging(), FixedAllocator("qat"), watches]).fit(module, loader(), loader())
        assert set(watches.trained) == {"QatLinear"}
        assert set(watches.validated) == {"Linear"}
        assert type(module.net[0]) is nn.Linear

    def test_a_proximal_term_pulls(self, silo: dict[str, Any]) -> None:
        free, pulled = SmallModule(), SmallModule()
        start = {name: value.clone() for name, value in free.state_dict().items()}
        pl.Trainer(**silo, callbacks=[averaging(scheme=None)]).fit(free, loader())
        pl.Trainer(**silo, callbacks=[averaging(scheme=None, aggregator=FedProx(5.0))]).fit(pulled, loader())

        def moved(module: SmallModule) -> float:
            return sum(float((value - start[name]).norm()) for name, value in module.state_dict().items())

        assert 0 < moved(pulled) < moved(free)

    def test_resumes_with_the_same_settings_only(self, silo: dict[str, Any]) -> None:
        trainer = pl.Trainer(**silo, callbacks=[averaging()])
        trainer.fit(SmallModule(), loader())
        trainer.save_checkpoint("last.ckpt")
        other = pl.Trainer(**silo | {"max_epochs": 3}, callbacks=[averaging(scheme="w8a8")])
        with pytest.raises(ConfigurationError, match="scheme 'w4a8', this run has 'w8a8'"):
            other.fit(SmallModule(), loader(), ckpt_path="last.ckpt")
        edges = pl.Trainer(
            **silo | {"max_epochs": 3}, callbacks=[averaging(scheme=QuantScheme("w4a8", edge_bits=None))]
        )
        with pytest.raises(ConfigurationError, match="edge_bits 8, this run has None"):
            edges.fit(SmallModule(), loader(), ckpt_path="last.ckpt")

    def test_refuses_another_number_of_silos(self, silo: dict[str, Any]) -> None:
        trainer = pl.Trainer(**silo, callbacks=[averaging()])
        trainer.fit(SmallModule(), loader())
        trainer.save_checkpoint("last.ckpt")
        saved = torch.load("last.ckpt", weights_only=False)
        saved["fedhq_silos"] *= 3
        torch.save(saved, "last.ckpt")
        with pytest.raises(ConfigurationError, match="of 3 silos, this run has 1; resume with devices=3"):
            pl.Trainer(**silo, callbacks=[averaging()]).fit(SmallModule(), loader(), ckpt_path="last.ckpt")

    def test_a_damaged_checkpoint_is_refused(self, silo: dict[str, Any]) -> None:
        trainer = pl.Trainer(**silo, callbacks=[averaging()])
        trainer.fit(SmallModule(), loader())
        trainer.save_checkpoint("last.ckpt")
        sound = bytearray(Path("last.ckpt").read_bytes())
        place = sound.index(trainer.lightning_module.net[0].weight.detach().numpy().tobytes())
        flipped = sound[:place] + bytes([sound[place] ^ 16]) + sound[place + 1 :]
        for data, said in (
            (flipped, r"last\.ckpt: damaged: the checksum of its part"),
            (sound[:-100], r"last\.ckpt: damaged: its end is missing"),  # that of the silo's part is there
            (b"nothing of torch's", "last.ckpt holds more than tensors and plain values, or is damaged"),
        ):
            Path("last.ckpt").write_bytes(data)
            with pytest.raises(ConfigurationError, match=said):
                pl.Trainer(**silo, callbacks=[averaging()]).fit(SmallModule(), loader(), ckpt_path="last.ckpt")

    def test_objects_in_a_checkpoint_are_made_only_where_it_is_trusted(self, silo: dict[str, Any]) -> None:
        class Keeps(pl.Callback):
            kept: object = None

            def state_dict(self) -> dict[str, Any]:
                return {"kept": Path("here")}

            def load_state_dict(self, state_dict: dict[str, Any]) -> None:
                self.kept = state_dict["kept"]

        silo["max_epochs"] = 3
        trainer = pl.Trainer(**silo | {"max_epochs": 2}, callbacks=[averaging(), Keeps()])
        trainer.fit(SmallModule(), loader())
        trainer.save_checkpoint("last.ckpt")
        keeps = Keeps()
        again = pl.Trainer(**silo, callbacks=[averaging(), keeps])
        with pytest.raises(ConfigurationError, match=r"last\.ckpt holds more .* if you trust it, fit\("):
            again.fit(SmallModule(), loader(), ckpt_path="last.ckpt")
        assert keeps.kept is None
        again = pl.Trainer(**silo, callbacks=[averaging(), keeps])
        again.fit(SmallModule(), loader(), ckpt_path="last.ckpt", weights_only=False)
        assert keeps.kept == Path("here")

    def test_a_rehearsal_writes_nothing(self, silo: dict[str, Any], tmp_path: Any) -> None:
        trainer = pl.Trainer(**silo, fast_dev_run=True, callbacks=[averaging(export=True), HybridAllocator()])
        trainer.fit(SmallModule(), loader(), loader())
        assert not list(tmp_path.iterdir())

    def test_an_ordinary_checkpoint_is_a_start(self, silo: dict[str, Any]) -> None:
        plain = {key: value for key, value in silo.items() if key not in ("strategy", "use_distributed_sampler")}
        ordinary = pl.Trainer(**plain)
        ordinary.fit(SmallModule(), loader())
        ordinary.save_checkpoint("plain.ckpt")
        trainer = pl.Trainer(**silo | {"max_epochs": 3}, callbacks=[averaging()])
        trainer.fit(SmallModule(), loader(), ckpt_path="plain.ckpt")
        assert trainer.callback_metrics["fedhq/round"] == 1

    def test_tells_an_allocator_that_cannot_refine(self, silo: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(allocators, "_FEWEST_SILOS", 1)
        trainer = pl.Trainer(**silo, callbacks=[averaging(), HybridAllocator()])
        with pytest.warns(UserWarning, match="HybridAllocator: nothing is monitored.*quantized/NAME"):
            trainer.fit(SmallModule(), loader())

    @pytest.mark.parametrize(
        ("make", "asks"),
        [
            (HybridAllocator, True),
            (lambda: HybridAllocator(divergence="updates"), False),
            (lambda: FixedAllocator(0.5, by="divergence"), True),
            (lambda: FixedAllocator("qat"), False),
            (None, False),
        ],
    )
    def test_labels_are_told_to_an_allocator_that_asks(
        self, silo: dict[str, Any], monkeypatch: pytest.MonkeyPatch, make: Any, asks: bool
    ) -> None:
        told: list[Any] = []
        gather = silo_run.gather_facts

        def listen(exchange: Any, mine: Any) -> Any:
            told.append(mine.labels)
            return gather(exchange, mine)

        monkeypatch.setattr(silo_run, "gather_facts", listen)
        allocator = [] if make is None else [make()]
        pl.Trainer(**silo | {"max_epochs": 1}, callbacks=[averaging(), *allocator]).fit(SmallModule(), loader())
        assert told == [label_counts(examples(20, 1)) if asks else None]

    def test_manual_optimization_works_without_an_allocator(self, silo: dict[str, Any]) -> None:
        class Manual(BoringModel):
            def __init__(self) -> None:
                super().__init__()
                self.automatic_optimization = False

            def training_step(self, batch: Any, batch_idx: int) -> None:
                optimizer: Any = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(self.step(batch))
                optimizer.step()

        trainer = pl.Trainer(**silo, callbacks=[averaging()])
        with pytest.warns(UserWarning, match="no virtual seconds.*optimizes by itself"):
            trainer.fit(Manual())
        assert trainer.callback_metrics["fedhq/round"] == 2
        with pytest.raises(ConfigurationError, match="HybridAllocator needs predicted times"):
            pl.Trainer(**silo, callbacks=[averaging(), HybridAllocator()]).fit(Manual())
