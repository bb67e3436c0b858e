"""What benchmarks/step_time.py measures: models, lanes, and one training step of each pair."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhq_lightning.models import MLP, LeNet5, ResNet20, ViT
from fedhq_lightning.quantize import LaneOptions, QuantScheme, prepare
from fedhq_lightning.quantize.native.lanes import kernels_of_torch
from fedhq_lightning.quantize.torchao_quietly import quantize_
from fedhq_lightning.types import Mode

SCHEME = QuantScheme("w4a8")
SEED_OF_WEIGHTS = 0


@dataclass(frozen=True)
class Model:
    """One model and its batch.

    Attributes:
        title: As the report names it.
        build: Makes the module, its weights from torch's generator.
        input_shape: Shape of the batch of images.
        convolutional: Whether its work is convolutions, which torchao's lanes do not have.
    """

    title: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    convolutional: bool


@dataclass(frozen=True)
class Lane:
    """One way to compute a training step.

    Attributes:
        title: As the report names it.
        prepare: Changes the module in place.
        bf16: Whether the forward pass and the loss run under bf16 autocast.
        layout: Memory format of weights and images; None leaves both as model and data come.
        models: "linear", "convolutional" or "all": the models it is for.
        own_kernels: Whether our own kernels compute where they can; else torch's.
    """

    title: str
    prepare: Callable[[nn.Module], object] = lambda module: module
    bf16: bool = False
    layout: torch.memory_format | None = None
    models: str = "all"
    own_kernels: bool = True


class _OnednnProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient, rows = gradient.flatten(0, -2), x.flatten(0, -2)
        grad_x = _product(gradient, weight.t().contiguous(), None).view_as(x) if ctx.needs_input_grad[0] else None
        return grad_x, _product(gradient.t().contiguous(), rows.t().contiguous(), None), gradient.sum(0)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


class _OnednnLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _OnednnProducts.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]  # untyped in torch
        return output


def _through_onednn(module: nn.Module) -> None:
    """The library that torch does not ask for fp32 products, though on some processors it is the faster one."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = _OnednnLinear


def _torchao_int8(module: nn.Module) -> None:
    from torchao.prototype.quantized_training import int8_mixed_precision_training

    # Its kernels want sizes that are multiples of 8 on CUDA; the last layer of a classifier has 10 outputs.
    def fits(layer: nn.Module, name: str) -> bool:
        return type(layer) is nn.Linear and layer.in_features % 8 == 0 and layer.out_features % 8 == 0

    # As another class: fused optimizers do not take its tensor subclass.
    quantize_(module, int8_mixed_precision_training(module_swap=True), filter_fn=fits)


def _torchao_qat(module: nn.Module) -> None:
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig
    from torchao.quantization.granularity import PerAxis
    from torchao.quantization.qat import QATConfig

    int4 = torch.int4  # type: ignore[attr-defined]  # missing in torch's stubs
    quantize_(module, QATConfig(Int8DynamicActivationIntxWeightConfig(int4, PerAxis(0)), step="prepare"))


def _ours(mode: Mode, options: LaneOptions | None = None) -> Callable[[nn.Module], nn.Module]:
    return lambda module: prepare(module, mode, SCHEME, options)


MODELS = {
    "mlp-1024": Model("MLP 3x1024, batch 256", lambda: MLP(hidden_sizes=(1024,) * 3), (256, 1, 28, 28), False),
    "vit-384": Model(
        "ViT d=384 L=6, 49 tokens, batch 32",
        lambda: ViT(patch_size=4, width=384, depth=6, num_heads=6),
        (32, 1, 28, 28),
        False,
    ),
    "resnet20-64": Model(
        "ResNet-20 width 64-128-256, 32x32, batch 32", lambda: ResNet20(3, width=64), (32, 3, 32, 32), True
    ),
    "resnet20-16": Model(
        "ResNet-20 width 16-32-64, 32x32, batch 32", lambda: ResNet20(3, width=16), (32, 3, 32, 32), True
    ),
    "lenet5": Model("LeNet-5, 28x28, batch 32", LeNet5, (32, 1, 28, 28), True),
    "mlp-128": Model("MLP 1x128, batch 32", lambda: MLP(hidden_sizes=(128,)), (32, 1, 28, 28), False),
}
LANES = {
    # What users have: the layout that torch gives to every new module.
    "fp32": Lane("fp32", layout=torch.contiguous_format),
    "fp32-channels-last": Lane("fp32, channels_last", layout=torch.channels_last, models="convolutional"),
    "fp32-onednn": Lane(
        "fp32, linear through oneDNN", _through_onednn, layout=torch.contiguous_format, models="linear"
    ),
    "bf16": Lane("bf16 autocast", bf16=True, layout=torch.contiguous_format),
    "bf16-channels-last": Lane(
        "bf16 autocast, channels_last", bf16=True, layout=torch.channels_last, models="convolutional"
    ),
    "torchao-int8": Lane("torchao int8 prototype", _torchao_int8, models="linear"),
    "ptq": Lane("ptq", _ours("ptq")),
    "ptq-torch": Lane("ptq, torch's kernels", _ours("ptq"), own_kernels=False),
    "ptq-bf16": Lane("ptq, rest in bf16 autocast", _ours("ptq"), bf16=True),
    "torchao-qat": Lane("torchao QAT w4a8", _torchao_qat, models="linear"),
    "qat": Lane("qat w4a8", _ours("qat")),
    "qat-bf16": Lane("qat w4a8, bf16 backward", _ours("qat", LaneOptions(qat_backward="bf16"))),
    "qat-torch": Lane("qat w4a8, torch's kernels", _ours("qat"), own_kernels=False),
    "qat-fake": Lane("qat w4a8, kernel fake", _ours("qat", LaneOptions(qat_kernel="fake"))),
}


def lanes_for(model: Model) -> list[str]:
    """Names of the lanes that make sense for a model."""
    kind = "convolutional" if model.convolutional else "linear"
    return [name for name, lane in LANES.items() if lane.models in ("all", kind)]


def build_step(model: Model, lane: Lane, device: torch.device) -> Callable[[], None]:
    """A whole training step: forward, loss, backward, fused SGD with momentum, zero_grad.

    Weights and batch are the same for every lane of a model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED_OF_WEIGHTS)
        module = model.build().to(device)
        images = torch.randn(model.input_shape).to(device)
        labels = torch.randint(10, model.input_shape[:1]).to(device)
        lane.prepare(module)
    if lane.layout is not None:
        images = images.to(memory_format=lane.layout)
        module = module.to(memory_format=lane.layout)  # type: ignore[call-overload]  # missing in torch's stubs
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, fused=True)
    autocast = torch.autocast(device.type, torch.bfloat16) if lane.bf16 else contextlib.nullcontext()

    def step() -> None:
        with contextlib.nullcontext() if lane.own_kernels else kernels_of_torch():
            with autocast:
                loss: Tensor = functional.cross_entropy(module(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        optimizer.step()
        optimizer.zero_grad()

    return step
