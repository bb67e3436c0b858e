"""Low-rank adapters on a frozen base: what travels, what stays, and what is deployed."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from fedhq_lightning.callbacks import FixedAllocator
from fedhq_lightning.federated.algorithms import FedAdam, FedDyn, FedProx, Scaffold
from fedhq_lightning.federated.payload import Header, encode
from fedhq_lightning.federated.robust import CoordinateMedian
from fedhq_lightning.federated.secure import SecureAggregation
from fedhq_lightning.models import CharTransformer
from fedhq_lightning.quantize import LaneOptions, QuantScheme
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.run.records import ClientRecord
from fedhq_lightning.trainer import FederatedTrainer
from fedhq_lightning.types import StateDict

from ..data.texts import SmallTexts
from ..small_federation import same_bits, trainer
from ..three_ways import run_three_ways

SHAPE: dict[str, Any] = {"length": 8, "width": 8, "depth": 1, "num_heads": 2, "lr": 0.05}
SCHEME = QuantScheme("w4a8", overrides={"*lora_*": "w8a8"})


def model(lora_rank: int | None = 2) -> CharTransformer:
    torch.manual_seed(0)
    return CharTransformer(**SHAPE, lora_rank=lora_rank)


def built() -> CharTransformer:
    """As it is when a run begins."""
    there = model()
    there.configure_model()
    return there


def adapters_of(module: CharTransformer) -> StateDict:
    return {name: value for name, value in module.state_dict().items() if "lora_" in name}


def base_of(module: CharTransformer) -> StateDict:
    return {name: value for name, value in module.state_dict().items() if "lora_" not in name}


def fitted(tmp_path: Path, module: CharTransformer, writes: bool = False, **settings: Any) -> FederatedTrainer:
    there = trainer(default_root_dir=tmp_path, local_steps=2, **settings)
    there.writes_model = writes
    there.fit(module, SmallTexts(client_holdout=0.2 if "personal_layers" in settings else None))
    return there


def clients_of(done: FederatedTrainer) -> list[ClientRecord]:
    return [client for record in RunDirectory(done.run_dir).stream_rounds() for client in record.clients]


@pytest.mark.parametrize("uplink", ["weights", "delta"])
@pytest.mark.parametrize("scheme", [None, SCHEME], ids=["fp", "w4a8"])
def test_adapters_travel_alone(scheme: QuantScheme | None, uplink: Any, tmp_path: Path) -> None:
    settings = {} if scheme is None else {"scheme": scheme, "callbacks": FixedAllocator(0.5)}
    tuned = model()
    done = fitted(tmp_path, tuned, uplink=uplink, **settings)
    begun = built()
    grids = {} if scheme is None else {f"{name}.weight": grid for name, grid in scheme.for_layers(begun).items()}
    kind = uplink if scheme is not None else "weights"
    clients = clients_of(done)
    assert len(clients) == 8
    for each in clients:
        payload = encode(adapters_of(begun), grids, Header(kind, each.round, each.client_id))
        assert each.uplink_bytes == len(payload)
    # The base goes down once; what goes down then are the adapters, in fp32.
    first, later = ({each.downlink_bytes for each in clients if each.round == number} for number in (1, 2))
    (once,), (often,) = first, later
    base_bytes = sum(value.nbytes for value in base_of(begun).values())
    assert base_bytes < once - often < 1.5 * base_bytes
    assert often == len(encode(adapters_of(begun), {}, Header("weights", 2, "server")))
    assert same_bits(base_of(tuned), base_of(begun))
    assert not any(torch.equal(value, begun.state_dict()[name]) for name, value in adapters_of(tuned).items())


@pytest.mark.parametrize(
    "settings",
    [
        {"callbacks": FixedAllocator("ptq"), "lanes": LaneOptions(layer_kernels={"ptq": {"*": "int8"}})},
        {"callbacks": FixedAllocator("qat")},
        {"uplink": "delta", "error_feedback": True, "uplink_bits": 3},
        {"downlink": "scheme"},
        {"aggregator": FedProx(0.1)},
        {"aggregator": FedAdam(0.1)},
        {"aggregator": Scaffold()},
        {"aggregator": FedDyn()},
        {"robust_rule": CoordinateMedian()},
        {"secure_aggregation": SecureAggregation(threshold=3), "max_norm_ratio": None},
        {"personal_layers": ["*lora_B*"]},
        {"ditto": 0.1},
        {"average_from": 1},
    ],
    ids=lambda each: ", ".join(each),
)
def test_the_base_stays_to_the_last_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    tuned = model()
    done = fitted(tmp_path, tuned, **{"scheme": SCHEME} | settings)
    assert same_bits(base_of(tuned), base_of(built()))
    saved = load_checkpoint(RunDirectory.of_checkpoint(done.run_dir)[1])["state"]["global_state"]
    assert same_bits({name: saved[name] for name in base_of(tuned)}, base_of(built()))
    assert any(not torch.equal(saved[name], value) for name, value in adapters_of(built()).items())


def test_the_deployed_model_is_whole(tmp_path: Path) -> None:
    """Without a scheme: the weights of base and adapters, which are peft's own merged model."""
    tuned = model()
    done = fitted(tmp_path, tuned, writes=True)
    written = safetensors.torch.load_file(done.run_dir / "model" / "weights.safetensors")
    assert same_bits(written, tuned.state_dict())
    characters = torch.arange(16).view(2, 8)
    beside = tuned.eval()(characters)
    for part in tuned.modules():
        if isinstance(part, BaseTunerLayer):
            part.merge()
    torch.testing.assert_close(tuned(characters), beside, rtol=1e-5, atol=1e-5)
    plain = model(lora_rank=None).eval()
    plain.load_state_dict({name.replace(".base_layer", ""): value for name, value in base_of(tuned).items()})
    torch.testing.assert_close(plain(characters), beside, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(built().eval()(characters), beside, atol=1e-3)


@pytest.mark.corner
def test_base_and_adapters_are_deployed_on_their_grids(tmp_path: Path) -> None:
    done = fitted(tmp_path, model(), writes=True, scheme=SCHEME)
    assert done.summary["export"] == "model.pt2"
    program = torch.export.load(done.run_dir / "model" / "model.pt2")
    integers = [name for name in program.state_dict if name.endswith("quantized_weight")]
    assert len(integers) == 4 * 3 + 1  # of four layers the base, A and B, and the classifier


@pytest.mark.corner
def test_one_process_two_and_a_resumed_run_are_bitwise_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model(lora_rank=None).state_dict(), base)
    changes: dict[str, Any] = {
        "model": {"class_path": "CharTransformer", "init_args": SHAPE | {"base": str(base), "lora_rank": 2}},
        "data": {"class_path": "tests.data.texts.SmallTexts"},
        "trainer.scheme": {"scheme": "w4a8", "overrides": {"*lora_*": "w8a8"}},
        "trainer.uplink": "delta",
        "trainer.clients_per_round": 3,
        "trainer.enable_progress_bar": False,
    }
    runs = run_three_ways(tmp_path, changes, monkeypatch)
    states = [load_checkpoint(RunDirectory.of_checkpoint(run)[1])["state"]["global_state"] for run in runs]
    assert all(same_bits(state, states[0]) for state in states)
    assert same_bits({name: states[0][name] for name in base_of(built())}, base_of(built()))
    whole, *others = (RunDirectory(run).read_rounds() for run in runs)
    for records in others:
        assert [each.metrics for each in records] == [each.metrics for each in whole]
        assert [each.uplink_bytes for each in records] == [each.uplink_bytes for each in whole]
        assert [each.virtual_seconds for each in records] == [each.virtual_seconds for each in whole]
