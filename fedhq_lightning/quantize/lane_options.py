"""How the lanes compute, as a recipe says it."""

from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.quantize.range_learning import check_range_learning_rate
from fedhq_lightning.types import Mode

PtqKernel = Literal["auto", "int8", "fp"]
"""`auto` is the static rule of `kernel_choice`; the others decide for a layer."""
QatKernel = Literal["auto", "int8", "fake"]
"""`auto` is the same rule, with fused fake quantization where integers do not pay."""
QatBackward = Literal["int8", "bf16"]
DEFAULT_QAT_BACKWARD: QatBackward = "int8"
KERNELS: dict[str, tuple[str, ...]] = {"ptq": get_args(PtqKernel), "qat": get_args(QatKernel)}


@dataclass(frozen=True)
class LaneOptions:
    """How the lanes compute.

    Args:
        qat_kernel: `int8`: the forward of QAT is the deployed model's integer arithmetic, bit for bit. `fake`: it is
            torchao's conventional fake quantization, as most people train today. `auto`: integers in layers where they
            are faster, else fake quantization with fused kernels; the same numbers to about 1e-6.
        stochastic_rounding: PTQ rounds gradients up or down at random, without bias, instead of to the nearest step.
        bias_correction: A PTQ client corrects the biases of its model, on one batch of its data, for what rounding the
            weights does to the mean output of every layer, before it sends them rounded (see `correct_bias`).
        range_lr: How far QAT moves the ends of a static activation range in a step, about, in shares of its span; 0
            leaves them as they were calibrated. Schemes without static ranges (`w4a4s`) have no use for it.
        layer_kernels: Mode (`ptq`, `qat`) to name pattern (as in fnmatch) to kernel: for `ptq` `auto`, `int8` or `fp`,
            for `qat` `auto`, `int8` or `fake`. The first pattern that matches a layer wins. `fedhq profile RECIPE
            --write` fills it with what is fastest on a host.
        qat_backward: What QAT's gradients are computed in where its forward is in integers. `int8`: the integers, and
            the gradient rounded to 8 bits as in PTQ. `bf16`: the values that the integers stand for, in bf16 where the
            device is fast at it, else in fp32; layers with a static range always do that.

    Raises:
        ConfigurationError: A mode, kernel or backward that does not exist, or `range_lr` below 0.
    """

    qat_kernel: QatKernel = "auto"
    stochastic_rounding: bool = False
    bias_correction: bool = False
    layer_kernels: dict[str, dict[str, str]] | None = None
    range_lr: float = 0.01
    qat_backward: QatBackward = DEFAULT_QAT_BACKWARD

    def __post_init__(self) -> None:
        """Check everything that needs no module."""
        check_kernel("qat", self.qat_kernel, "qat_kernel")
        check_backward(self.qat_backward)
        check_range_learning_rate(self.range_lr)
        for mode, patterns in (self.layer_kernels or {}).items():
            if mode not in KERNELS:
                raise ConfigurationError(
                    f"layer_kernels {mode!r}: kernels are chosen for {' and '.join(KERNELS)}{nearest(mode, KERNELS)}"
                )
            for pattern, kernel in patterns.items():
                check_kernel(mode, kernel, f"layer_kernels {mode} {pattern!r}")

    def kernels_of(self, mode: Mode, names: list[str]) -> dict[str, Any]:
        """Kernel of every layer.

        Args:
            mode: `ptq` or `qat`.
            names: The layers that the scheme quantizes.

        Returns:
            Name to kernel, in the order given.

        Raises:
            ConfigurationError: A pattern that matches no layer.
        """
        patterns = (self.layer_kernels or {}).get(mode, {})
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise ConfigurationError(
                    f"layer_kernels {mode} {pattern!r} matches no layer; quantized layers are {shown}"
                    f"{nearest(pattern, names)}"
                )
        default = "auto" if mode == "ptq" else self.qat_kernel
        return {name: next((k for p, k in patterns.items() if fnmatchcase(name, p)), default) for name in names}


def check_kernel(mode: str, kernel: object, name: str) -> None:
    """Refuse a kernel that a mode does not have.

    Raises:
        ConfigurationError: Such a kernel.
    """
    allowed = KERNELS[mode]
    if kernel not in allowed:
        raise ConfigurationError(f"{name} {kernel!r}: allowed are {', '.join(allowed)}{nearest(str(kernel), allowed)}")


def default_of_option(name: str, owner: str | None, key: str) -> Any:
    """The default of a lane's option that the package has gained since settings were written; None of anything else.

    Args:
        name: Dotted name of what holds it, such as `trainer.lanes` or `recipe.trainer.lanes`.
        owner: Not used; see `recipe.identity.changes`.
        key: The option.
    """
    is_lanes = name == "trainer.lanes" or name.endswith(".trainer.lanes")
    return next((each.default for each in fields(LaneOptions) if is_lanes and each.name == key), None)


def check_backward(backward: object) -> None:
    """Refuse a way of QAT's backward that does not exist.

    Raises:
        ConfigurationError: Such a way.
    """
    allowed = get_args(QatBackward)
    if backward not in allowed:
        near = nearest(str(backward), allowed)
        raise ConfigurationError(f"qat_backward {backward!r}: allowed are {', '.join(allowed)}{near}")
