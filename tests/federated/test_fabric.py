"""Where Fabric places the processes of a run."""

from typing import Any

import pytest
import torch
from lightning.fabric.strategies.ddp import DDPStrategy

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.fabric import make_fabric


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as anybody asks before a process begins to compute."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def fabric(accelerator: str = "gpu", devices: Any = 1, strategy: str = "auto") -> Any:
    return make_fabric(accelerator, devices, 1, strategy, "32-true")


@pytest.mark.usefixtures("_two_gpus")
class TestGpus:
    @pytest.mark.parametrize("strategy", ["auto", "ddp"])
    def test_one_that_is_listed_twice_gets_two_processes(self, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
        first = fabric(devices=[1, 0, 1], strategy=strategy)
        assert first.strategy.launcher.num_processes == first.world_size == 3
        for rank, index in enumerate((1, 0, 1)):
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            found = fabric(devices=[1, 0, 1], strategy=strategy)
            assert found.device == torch.device("cuda", index)
            assert found.strategy._get_process_group_backend() == "gloo"

    def test_else_placing_and_talking_are_lightnings(self) -> None:
        assert fabric(devices=[1]).device == torch.device("cuda", 1)
        two = fabric(devices=[0, 1])
        assert isinstance(two.strategy, DDPStrategy)
        assert two.strategy._get_process_group_backend() == "nccl"

    @pytest.mark.parametrize("devices", [[2], [2, 2]])
    def test_that_are_not_there_are_refused(self, devices: list[int]) -> None:
        with pytest.raises(ConfigurationError, match=r"devices \[2(, 2)?\].*requested gpu: \[2\]"):
            fabric(devices=devices)

    def test_are_shared_under_these_strategies_alone(self) -> None:
        with pytest.raises(ConfigurationError, match=r"devices \[0, 0\], strategy 'fsdp': .*must be unique"):
            fabric(devices=[0, 0], strategy="fsdp")


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_a_cpu_is_not_listed(accelerator: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"accelerator '{accelerator}', devices \[0, 0\]"):
        fabric(accelerator, [0, 0])
