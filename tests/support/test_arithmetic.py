"""What torch computes with while a recipe is at work, and afterwards."""

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

from fedhq_lightning.support.arithmetic import reproducible


@pytest.fixture(autouse=True)
def threads() -> int:
    return torch.get_num_threads()


def test_threads_are_the_recipes_and_then_as_before(threads: int) -> None:
    with suppress(KeyError), reproducible(threads + 1, torch.device("cpu")):
        assert torch.get_num_threads() == threads + 1
        raise KeyError
    assert torch.get_num_threads() == threads


def test_gpus_add_up_in_one_order_and_then_as_before(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with reproducible(threads, torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_a_cpu_is_left_alone(threads: int) -> None:
    with reproducible(threads, torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()


BACKENDS = (
    *(torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn),
    *(torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn),
)


@pytest.fixture
def _precision_kept() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for each in BACKENDS:
        each.fp32_precision = "tf32" if each in BACKENDS[1:3] else "none"


def _precisions() -> list[str]:
    return [torch.backends.fp32_precision, *(each.fp32_precision for each in BACKENDS)]


@pytest.mark.usefixtures("_precision_kept")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
class TestPrecision:
    def test_products_of_float32_are_in_float32_and_then_as_before(self, threads: int, device: str) -> None:
        for set_for_all in (True, False):
            torch.set_float32_matmul_precision("medium" if set_for_all else "highest")
            if not set_for_all:
                torch.backends.cuda.matmul.fp32_precision = "tf32"  # of which torch makes no whole
            before = _precisions()
            with reproducible(threads, torch.device(device)):
                assert set(_precisions()) == {"ieee"}
                assert torch.get_float32_matmul_precision() == "highest"
            assert _precisions() == before
        torch.set_float32_matmul_precision("medium")
        with reproducible(threads, torch.device(device)):
            pass
        assert torch.get_float32_matmul_precision() == "medium"

    def test_what_was_told_to_all_backends_is_not_told_to_each_of_them_afterwards(
        self, threads: int, device: str
    ) -> None:
        torch.backends.mkldnn.fp32_precision = "bf16"
        assert torch.backends.mkldnn.conv.fp32_precision == "bf16"
        before = _precisions()
        with reproducible(threads, torch.device(device)):
            assert set(_precisions()) == {"ieee"}
        assert _precisions() == before
        torch.backends.mkldnn.fp32_precision = "ieee"
        assert {each.fp32_precision for each in BACKENDS[3:]} == {"ieee"}

    def test_backends_that_differ_stop_nothing(self, threads: int, device: str) -> None:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        before = _precisions()
        with reproducible(threads, torch.device(device)):
            assert set(_precisions()) == {"ieee"}
            assert not torch.backends.cudnn.allow_tf32
        assert _precisions() == before
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        assert torch.backends.cudnn.allow_tf32
