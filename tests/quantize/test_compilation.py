import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fedhq_lightning.quantize import compilation, fused_fake, grid, int8_convolution, int8_training, integer_forward
from fedhq_lightning.quantize.compilation import SMALL, can_compile, compiled, has_compiler

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


@pytest.fixture
def _forgotten() -> Iterator[None]:
    has_compiler.cache_clear()
    can_compile.cache_clear()
    yield
    has_compiler.cache_clear()
    can_compile.cache_clear()


def counting() -> tuple[Callable[[Tensor, int], Tensor], list[tuple[int, ...]]]:
    calls = []

    def double(x: Tensor, plus: int) -> Tensor:
        if not torch.compiler.is_compiling():
            calls.append(tuple(x.shape))
        return x * 2 + plus

    return compiled(double), calls


@pytest.mark.usefixtures("_forgotten")
def test_without_a_compiler_kernels_run_eagerly_and_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch, "compile", lambda *arguments, **options: pytest.fail("compiled"))
    (first, first_calls), (second, second_calls) = counting(), counting()
    x = torch.ones(SMALL)
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler on this host: .* apt-get install g\+\+"):
        assert torch.equal(first(x, 1), x + 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first(x, 1), second(x, 1)
        assert not can_compile()
    assert len(first_calls) == 2
    assert len(second_calls) == 1


@pytest.mark.usefixtures("_forgotten")
def test_small_inputs_need_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation.shutil, "which", lambda name: pytest.fail("asked for a compiler"))
    monkeypatch.setattr(torch, "compile", lambda *arguments, **options: pytest.fail("compiled"))
    kernel, calls = counting()
    for size in (0, 1, SMALL - 1):
        kernel(torch.ones(size), 1)
    assert len(calls) == 3


def test_where_torch_cannot_compile_a_kernel_runs_eagerly_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    attempts = []

    def failing(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            attempts.append(arguments)
            raise BackendCompilerFailed(failing, RuntimeError("the reason"), None)

        return call

    monkeypatch.setattr(compilation, "can_compile", lambda: True)
    monkeypatch.setattr(torch, "compile", failing)
    kernel, calls = counting()
    x = torch.ones(SMALL)
    with pytest.warns(UserWarning, match=r"kernel double is not compiled \(.*\): it runs slower"):
        assert torch.equal(kernel(x, 1), x + 2)
    kernel(x, 1)
    assert len(calls) == 2
    assert len(attempts) == 1


BROKEN = """
import warnings

import torch

from fedhq_lightning.quantize.compilation import SMALL, compiled


@compiled
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


x = torch.ones(SMALL)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        assert torch.equal(double(x), x * 2)
ours = [str(w.message) for w in said if "double is not compiled" in str(w.message)]
assert len(ours) == 1, [str(w.message) for w in said]
"""


@pytest.mark.corner
def test_a_compiler_that_fails_is_a_warning(tmp_path: Any) -> None:
    """A compiler that is found and then does not work, as with missing headers."""
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho cannot >&2\nexit 1\n")
    broken.chmod(0o755)
    environment = {**os.environ, "CXX": str(broken), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", BROKEN], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.corner
@needs_compiler
def test_a_cuda_toolkit_without_a_gpu_is_not_talked_about(tmp_path: Any) -> None:
    quietly = BROKEN.replace("assert len(ours) == 1", "assert not ours")
    environment = {**os.environ, "CUDA_HOME": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", quietly], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_compiler
def test_large_inputs_of_any_size_are_compiled_once() -> None:
    from torch._dynamo.utils import counters

    kernel, calls = counting()
    before = counters["stats"]["unique_graphs"]
    for size in (SMALL, SMALL + 1, 3 * SMALL + 7):
        x = torch.randn(size, requires_grad=True)
        output = kernel(x, 1)
        assert torch.equal(output, x.detach() * 2 + 1)
        assert not output.requires_grad
    assert calls == []
    assert counters["stats"]["unique_graphs"] == before + 1


def test_each_kind_of_device_has_kernels_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(compilation, "can_compile", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda function, options, **_: asked.append(options) or function)
    kernel, calls = counting()
    for device in ("cpu", "cuda", "cpu", "cuda"):
        with FakeTensorMode():
            kernel(torch.empty(SMALL, device=device), 1)
    assert asked == [compilation._AS_EAGER, compilation._AS_EAGER_ON_GPUS]
    assert len(calls) == 4


def test_on_gpus_no_product_and_sum_are_rounded_as_one() -> None:
    """What torch tells Triton, which compiles for GPUs, under the options that ours are compiled with."""
    from torch._inductor import config
    from torch._inductor.codegen.triton import TritonKernel

    with config.patch(compilation._AS_EAGER_ON_GPUS):
        told = TritonKernel.triton_meta_common()
    assert not told["enable_fp_fusion"]
    assert told["disable_ftz"]


@needs_compiler
def test_a_tracer_takes_the_function_itself() -> None:
    kernel, _ = counting()

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return kernel(x, 1)

    program = torch.export.export(Module(), (torch.ones(SMALL),))
    assert any("mul" in str(node.target) for node in program.graph.nodes)


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape) ** 3
    x[torch.rand(shape) < 0.1] = 0
    x[0], x[1], x[2] = 0, x[1].abs(), -x[2].abs()
    return x.to(dtype)


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def whole(*shape: int) -> Tensor:
    return torch.randint(-100_000, 100_000, shape, dtype=torch.int32)


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    return values(131, 133, dtype=dtype)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return values(7, 5, 29, 31, dtype=dtype)


def scales(*shape: int) -> Tensor:
    return torch.rand(shape) / 7


ROW_PRODUCT = (whole(131, 133), scales(1, 133), whole(1, 133), scales(131, 1), torch.full((131, 1), -3.0))
IMAGE_PRODUCT = (whole(7, 29, 31, 5), scales(5), whole(5), scales(7, 1, 1, 1), torch.full((7, 1, 1, 1), 9.0))
bf16, fp32 = torch.bfloat16, torch.float32
KERNELS: dict[str, tuple[Callable[..., Any], list[tuple[Any, ...]]]] = {
    "weights, 8 bits": (grid._row_quantizer(8), [(rows(),), (rows(bf16),)]),
    "weights, 3 bits": (grid._row_quantizer(3), [(rows(),)]),
    "activations": (integer_forward._row_quantizer(8), [(rows(),), (rows(bf16),), (rows().t().contiguous().t(),)]),
    "images": (integer_forward._image_quantizer(8, False), [(images(),), (images(bf16),)]),
    "images, channels last": (integer_forward._image_quantizer(8, True), [(values(7, 29, 31, 5),)]),
    "rescale": (integer_forward._rescale, [(*ROW_PRODUCT, values(133), fp32), (*ROW_PRODUCT, None, bf16)]),
    "rescale images": (
        integer_forward._rescale_image,
        [(*IMAGE_PRODUCT, values(5), fp32, False), (IMAGE_PRODUCT[0].float(), *IMAGE_PRODUCT[1:], None, bf16, True)],
    ),
    "dequantize rows": (integer_forward.dequantize_rows, [(whole(131, 133).to(torch.int8), *ROW_PRODUCT[3:], bf16)]),
    "images on their grid": (
        integer_forward._image_rounder(8),
        [(images(), *IMAGE_PRODUCT[3:], bf16), (channels_last(images()), *IMAGE_PRODUCT[3:], fp32)],
    ),
    "fake weights, 2 bits": (fused_fake._weight_kernel(2), [(rows(),)]),
    "fake activations": (fused_fake._activation_kernel(8), [(rows(),), (rows(bf16),)]),
    "ptq rows": (int8_training.quantize_rows, [(rows(),), (rows(bf16),), (rows().t().contiguous().t(),)]),
    "ptq rescale": (int8_training._rescale, [(*ROW_PRODUCT[:1], scales(131, 1), scales(133, 1), values(133), fp32)]),
    "ptq rescale rows": (int8_training.rescale_rows, [(whole(131, 133), scales(131, 1), fp32)]),
    "ptq gradient": (
        int8_training._quantize_gradient,
        [(rows(), scales(131, 1), scales(133, 1), True, seed) for seed in (None, torch.tensor(7))],
    ),
    "ptq images": (int8_convolution._quantize_input, [(images(),), (channels_last(images()),), (images().relu(),)]),
    "ptq image gradient": (
        int8_convolution._quantize_gradient,
        [(images(), None), (channels_last(images()), torch.tensor(7))],
    ),
    "ptq filters": (int8_convolution._quantize_weight, [(values(71, 47, 3, 3), scales(1, 47, 1, 1))]),
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_kernels_equal_eager_ones_to_the_bit(name: str) -> None:
    kernel, cases = KERNELS[name]
    for arguments in cases:
        assert arguments[0].numel() >= SMALL
        actual, expected = kernel(*arguments), kernel.__wrapped__(*arguments)
        actual = [actual] if isinstance(actual, Tensor) else list(actual)
        expected = [expected] if isinstance(expected, Tensor) else list(expected)
        if "gradient" in name:
            # The bias's gradient is a sum in fp32, whose order is the kernel's own.
            torch.testing.assert_close(actual.pop(), expected.pop(), atol=2e-3, rtol=1e-5)
        for ours, theirs in zip(actual, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


@needs_compiler
def test_inference_mode_and_gradients_change_nothing() -> None:
    x = rows().requires_grad_()
    expected = int8_training.quantize_rows(x)
    with torch.inference_mode():
        actual = int8_training.quantize_rows(rows().copy_(x))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
