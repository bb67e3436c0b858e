"""The lanes' own kernels: every level of instructions gives the bits of the plain torch code."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import LaneOptions, QuantScheme, convert, prepare, qat_layers
from fedhq_lightning.quantize.compilation import has_compiler
from fedhq_lightning.quantize.fused_fake import _activation_kernel, _weight_kernel
from fedhq_lightning.quantize.grid import _row_quantizer
from fedhq_lightning.quantize.native import build, lanes
from fedhq_lightning.quantize.native.build import LEVELS, BuildError, built_library, levels_of_this_processor
from fedhq_lightning.quantize.native.lanes import (
    VARIABLE,
    kernels_of_torch,
    native,
    native_level,
    takes_images,
    takes_rows,
)

needs_kernels = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
INTEGERS = {mode: {"*": "int8"} for mode in ("ptq", "qat")}
SOURCES = Path(build.__file__).parent / "csrc"


@pytest.fixture
def _forgotten() -> Iterator[None]:
    native_level.cache_clear()
    yield
    native_level.cache_clear()


def trained(layer: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Output and gradients of one step."""
    layer.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = layer(x)
    output.backward(gradient)
    return [output.detach(), x.grad, *(each.grad.clone() for each in layer.parameters())]  # type: ignore[list-item]


def without_kernels(compute: Callable[[], list[Tensor]]) -> list[Tensor]:
    with kernels_of_torch():
        return compute()


def in_lane(layer: nn.Module, mode: Any, scheme: str = "w4a8", backward: Any = "bf16") -> nn.Module:
    options = LaneOptions(layer_kernels=INTEGERS, qat_backward=backward)
    return prepare(nn.Sequential(layer), mode, QuantScheme(scheme, edge_bits=None), options)


LANES = [("ptq", "bf16"), ("qat", "bf16"), ("qat", "int8")]
LINEAR = [(1, 1, 1), (5, 7, 3), (16, 16, 16), (33, 100, 50), (32, 784, 128), (129, 65, 33)]
CONVOLUTIONS: list[tuple[nn.Conv2d, tuple[int, int]]] = [
    (nn.Conv2d(1, 6, 5, padding=2), (14, 14)),
    (nn.Conv2d(6, 16, 5), (12, 12)),
    (nn.Conv2d(16, 32, 3, padding=1, stride=2), (16, 16)),
    (nn.Conv2d(16, 33, 1, stride=2, bias=False), (8, 8)),
    (nn.Conv2d(5, 7, (3, 2), stride=(2, 1), padding=(1, 2)), (9, 11)),
    (nn.Conv2d(3, 4, 3, padding=2, dilation=2), (12, 10)),
    (nn.Conv2d(4, 20, 3, stride=(3, 2), padding=1, dilation=(2, 1)), (13, 9)),
    (nn.Conv2d(40, 33, 3, padding=1), (7, 7)),
    (nn.Conv2d(3, 5, 2, stride=3), (8, 7)),  # pixels that no output meets
    (nn.Conv2d(4, 6, (2, 4), padding="same"), (7, 9)),  # not padded alike on both sides
]


@needs_kernels
@pytest.mark.usefixtures("_on", "level")
class TestBits:
    @pytest.mark.parametrize(("mode", "backward"), LANES)
    @pytest.mark.parametrize("scheme", ["w4a8", "w2a8", "w8a4"])
    @pytest.mark.parametrize("shape", LINEAR)
    def test_linear_layers(self, shape: tuple[int, int, int], scheme: str, mode: str, backward: str) -> None:
        rows, inner, out = shape
        layer = in_lane(nn.Linear(inner, out, bias=inner != 100), mode, scheme, backward)
        x, gradient = torch.randn(rows, inner) ** 3, torch.randn(rows, out)
        x[0] = 0
        expected = without_kernels(lambda: trained(layer, x, gradient))
        for ours, theirs in zip(trained(layer, x, gradient), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)

    @pytest.mark.parametrize(("mode", "backward"), LANES)
    @pytest.mark.parametrize("channels_last", ["nothing", "images", "weight", "all"])
    @pytest.mark.parametrize(("layer", "size"), CONVOLUTIONS, ids=repr)
    def test_convolutions(
        self, layer: nn.Conv2d, size: tuple[int, int], channels_last: str, mode: str, backward: str
    ) -> None:
        layer = in_lane(deepcopy(layer), mode, backward=backward)
        if channels_last in ("weight", "all"):
            layer = layer.to(memory_format=torch.channels_last)
        x = torch.randn(3, layer[0].in_channels, *size)
        with torch.no_grad():
            gradient = torch.randn_like(layer(x))
        if channels_last in ("images", "all"):
            x, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (x, gradient))
        for values in (x, x.relu()):
            expected = without_kernels(lambda values=values: trained(layer, values, gradient))
            for ours, theirs in zip(trained(layer, values, gradient), expected, strict=True):
                torch.testing.assert_close(ours, theirs, atol=0, rtol=0)

    @pytest.mark.parametrize(("mode", "backward"), [("ptq", "int8"), ("qat", "int8")])
    def test_a_batch_of_more_positions_than_sums_in_32_bits_take(self, mode: str, backward: str) -> None:
        layer = in_lane(nn.Conv2d(1, 2, 3, padding=1), mode, backward=backward)
        x, gradient = torch.rand(5, 1, 130, 190), torch.rand(5, 2, 130, 190)  # two images fit, in each of three parts
        expected = without_kernels(lambda: trained(layer, x, gradient))
        for ours, theirs in zip(trained(layer, x, gradient), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)

    @pytest.mark.parametrize(
        "layer", [nn.Linear(20, 9), nn.Conv2d(4, 9, (2, 3), padding="same"), nn.Conv1d(4, 9, 3, padding=1)], ids=repr
    )
    def test_gradients_in_bfloat16(self, layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(qat_layers, "gradient_dtype", lambda device: torch.bfloat16)
        layer = in_lane(layer, "qat")
        x = torch.randn({nn.Linear: (7, 20), nn.Conv2d: (2, 4, 6, 5), nn.Conv1d: (2, 4, 9)}[layer[0].plain_type])
        gradient = torch.randn_like(layer(x))
        expected = without_kernels(lambda: trained(layer, x, gradient))
        for ours, theirs in zip(trained(layer, x, gradient), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)

    @pytest.mark.parametrize("layer", [nn.Linear(20, 9), nn.Conv2d(4, 9, 3), nn.Conv1d(4, 9, 3, padding=1)], ids=repr)
    def test_deployed_layers(self, layer: nn.Module) -> None:
        deployed = convert(nn.Sequential(layer), QuantScheme("w4a8"))
        x = torch.randn({nn.Linear: (7, 20), nn.Conv2d: (2, 4, 6, 5), nn.Conv1d: (2, 4, 9)}[type(layer)])
        [expected] = without_kernels(lambda: [deployed(x)])
        assert torch.equal(deployed(x), expected)
        # Gradients go through scales, as ever.
        assert deployed(x.requires_grad_()).requires_grad

    @pytest.mark.parametrize("bits", [2, 3, 4, 8])
    @pytest.mark.parametrize("kernel", [_row_quantizer, _weight_kernel, _activation_kernel])
    def test_rounding_of_rows(self, kernel: Callable[[int], Any], bits: int) -> None:
        for shape in ((1, 1), (33, 100), (5, 2049)):
            rows = torch.randn(shape) ** 3
            rows[0] = 0
            rows[-1] *= 1e-36  # scales at the edge of what fp32 holds
            rows[len(rows) // 2] *= 1e-38  # and such that a sixteenth of them is beyond it
            ours, theirs = kernel(bits)(rows), kernel(bits).__wrapped__(rows)
            if isinstance(ours, Tensor):
                ours, theirs = [ours], [theirs]
            assert all(torch.equal(each, other) for each, other in zip(ours, theirs, strict=True))

    @pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("mode", ["ptq", "qat"])
    def test_values_that_are_not_finite_show(self, mode: str, value: float) -> None:
        for layer, x in ((nn.Linear(9, 4), torch.randn(3, 9)), (nn.Conv2d(2, 3, 3), torch.randn(2, 2, 5, 5))):
            x[(1, *[1] * (x.dim() - 1))] = value
            output = in_lane(layer, mode)(x)
            assert not output[1].isfinite().any()
            # A convolution of the PTQ lane has one scale for all images.
            assert (mode == "ptq" and x.dim() == 4) or output[0].isfinite().all()
            with torch.no_grad():
                layer.weight[(0,) * layer.weight.dim()] = value
            assert not in_lane(layer, mode)(torch.ones_like(x))[:, 0].isfinite().any()

    def test_a_gradient_of_a_gradient_is_refused_when_it_is_asked_for(self) -> None:
        layer, x = in_lane(nn.Linear(6, 4), "ptq"), torch.randn(3, 6, requires_grad=True)
        [gradient] = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no gradient of a gradient"):
            gradient.sum().backward()

    def test_without_gradients_nothing_is_kept(self) -> None:
        layer, x = in_lane(nn.Linear(6, 4), "ptq"), torch.randn(3, 6)
        expected = layer(x).detach()
        with torch.inference_mode():
            assert torch.equal(layer(x), expected)
        layer.requires_grad_(False)
        assert not layer(x).requires_grad
        x.requires_grad_()
        layer(x).sum().backward()
        assert x.grad is not None


@needs_kernels
@pytest.mark.usefixtures("_on", "level")
def test_kernels_take_plain_float32_on_one_thread() -> None:
    x, weight = torch.randn(4, 6), nn.Parameter(torch.randn(3, 6))
    assert native(x, weight, None) is torch.ops.fedhq
    assert native(x.double(), weight) is None
    assert native(x, weight.bfloat16()) is None
    assert native(x.to("meta"), weight) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert native(x, weight) is None
    torch.set_num_threads(2)
    try:
        assert native(x, weight) is None
    finally:
        torch.set_num_threads(1)
    taken = torch.func.vmap(lambda each: torch.ones(()) if native(each, weight) is None else torch.zeros(()))(x)
    assert bool(taken.all())


def test_sums_that_could_leave_32_bits_are_computed_otherwise() -> None:
    weight, rows = torch.empty(3, 4, device="meta"), torch.empty(2**16, 4, device="meta")
    assert takes_rows(rows, weight)
    assert not takes_rows(torch.empty(2**16 + 1, 4, device="meta"), weight)
    assert not takes_rows(torch.empty(2, 2**17, device="meta"), torch.empty(3, 2**17, device="meta"))
    filters, padding = torch.empty(3, 4, 3, 3, device="meta"), (1, 1, 1, 1)
    assert takes_images(torch.empty(9, 4, 254, 254, device="meta"), filters, padding)
    assert not takes_images(torch.empty(1, 4, 254, 255, device="meta"), filters, padding)
    assert not takes_images(torch.empty(1, 8000, 9, 9, device="meta"), torch.empty(1, 8000, 3, 3), padding)


@needs_kernels
@pytest.mark.usefixtures("_on", "level")
def test_small_layers_that_other_kernels_compute_stay_in_floating_point() -> None:
    plain, x = nn.Linear(6, 4), torch.randn(3, 6)
    expected = plain(x)
    scheme = QuantScheme("w4a8", edge_bits=None)
    for stochastic in (False, True):
        layer = prepare(nn.Sequential(plain), "ptq", scheme, LaneOptions(stochastic_rounding=stochastic))
        assert torch.equal(layer(x), expected) is stochastic


@needs_kernels
@pytest.mark.usefixtures("_on", "level")
def test_an_exported_program_has_plain_operations() -> None:
    deployed = convert(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), QuantScheme("w4a8")).eval()
    x = torch.randn(5, 8)
    program = torch.export.export(deployed, (x,))
    assert not any("fedhq" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), deployed(x))


@pytest.mark.usefixtures("_forgotten")
class TestWithout:
    def test_a_level_that_gives_wrong_bits_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if len(levels_of_this_processor()) < 2 or not has_compiler():
            pytest.skip("no level but the reference")
        monkeypatch.setattr(lanes, "_agrees", lambda level, reference: False)
        with pytest.warns(UserWarning, match=r"the \w+ kernels fail their test on this processor"):
            assert native_level() is None

    def test_a_build_that_fails_is_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing() -> Path:
            raise BuildError("error: no such header")

        monkeypatch.setattr(lanes, "has_compiler", lambda: True)
        monkeypatch.setattr(lanes, "built_library", failing)
        with pytest.warns(UserWarning, match=r"not built \(error: no such header\): slower ones compute"):
            assert native_level() is None

    def test_without_a_compiler_nothing_is_said_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lanes, "has_compiler", lambda: False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert native_level() is None

    def test_the_test_of_a_level_needs_gradients_whatever_the_caller_computes(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        expected = native_level()
        native_level.cache_clear()
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            assert native_level() == expected
        assert counted.get_total_flops() == 0
        native_level.cache_clear()
        with torch.inference_mode():
            assert native_level() == expected

    def test_levels_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, "off")
        assert native_level() is None
        native_level.cache_clear()
        monkeypatch.setenv(VARIABLE, "avx3")
        with pytest.raises(ConfigurationError, match=r"FEDHQ_KERNELS 'avx3': allowed are avx512_vnni, .*, scalar, off"):
            native_level()
        lacking = [name for name in LEVELS if name not in levels_of_this_processor()]
        monkeypatch.setenv(VARIABLE, lacking[0])
        if has_compiler():
            with pytest.raises(ConfigurationError, match=rf"'{lacking[0]}': this processor has .*scalar"):
                native_level()


class TestBuild:
    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build, "compiler", lambda: None)
        with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
            built_library()

    @needs_kernels
    def test_nothing_half_made_stays(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
        monkeypatch.setattr(build, "_SAME_BITS", ("-no-such-flag",))
        with pytest.raises(BuildError, match="no-such-flag"):
            built_library()
        assert not list(tmp_path.rglob("*.so"))

    @needs_kernels
    def test_where_nothing_can_be_written(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
        with pytest.raises(BuildError, match="file"):
            built_library()

    @needs_kernels
    def test_a_library_is_found_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = built_library()
        monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("built a second time"))
        assert built_library() == first


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("name", levels_of_this_processor())
def test_no_kernel_leaves_its_memory_or_does_what_is_undefined(name: str, tmp_path: Path) -> None:
    """A driver of its own, since sanitizers and torch do not go together: random shapes, against the reference."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    assert compiler is not None
    sanitized = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-fPIC", "-g"]
    levels = dict.fromkeys((name, "scalar"))
    listed = " ".join(f"FEDHQ_LEVEL({each})" for each in levels)
    commands = [
        *(
            ["-O1", *build._SAME_BITS, *LEVELS[each][1], f"-DLEVEL={each}", "-c", str(SOURCES / "kernels.cpp"),
             "-o", str(tmp_path / f"{each}.o")]
            for each in levels
        ),
        ["-O1", f"-DFEDHQ_LEVELS={listed}", "-c", str(SOURCES / "levels.cpp"), "-o", str(tmp_path / "levels.o")],
        ["-O1", "-c", str(SOURCES / "scratch.cpp"), "-o", str(tmp_path / "scratch.o")],
        ["-O1", f"-I{SOURCES}", "-c", str(Path(__file__).with_name("native_fuzz.cpp")), "-o", str(tmp_path / "fuzz.o")],
        [*map(str, (tmp_path / f"{each}.o" for each in (*levels, "levels", "scratch", "fuzz"))),
         "-o", str(tmp_path / "fuzz")],
    ]  # fmt: skip
    for command in commands:
        subprocess.run([compiler, "-std=c++17", *sanitized, *command], check=True)
    done = subprocess.run([str(tmp_path / "fuzz"), "200"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sys.platform != "linux" or "200 shapes" in done.stdout
