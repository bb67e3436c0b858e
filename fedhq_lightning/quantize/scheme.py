"""Schemes: the deployment grid of a run, and which grid each layer of a module gets."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from fedhq_lightning.errors import ConfigurationError, nearest

MIN_BITS, MAX_BITS = 2, 8
QUANTIZABLE_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Exact types only: a subclass may compute something else with its weight (as MultiheadAttention's projection does)."""

_SCHEME = re.compile(r"w(\d+)(?:a(\d+)(s)?)?(?:-g(\d+))?")
_EXAMPLES = ("w4a8", "w8a8", "w3a4", "w4", "w8", "w4a4", "w2a8", "w3a8-g32", "w4-g32", "w8a8s", "w4a4s", "w2a4s")


@dataclass(frozen=True)
class LayerScheme:
    """The grid of one layer.

    Attributes:
        weight_bits: 2..8, symmetric.
        activation_bits: 2..8, asymmetric; None leaves activations in floating point.
        group_size: Weights that share a scale, at least 2, along a layer's flattened input; None is one scale per
            output channel.
        static_range: Activations have one range for the whole tensor, calibrated or learned in training and fixed in
            the deployed model; otherwise a range is taken anew for every row or sample.

    Raises:
        ConfigurationError: A number outside these ranges, or a static range for activations that stay in floating
            point.
    """

    weight_bits: int
    activation_bits: int | None = None
    group_size: int | None = None
    static_range: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not MIN_BITS <= self.weight_bits <= MAX_BITS:
            raise self._error(f"weight bits must be {MIN_BITS}..{MAX_BITS}")
        if self.activation_bits is not None and not MIN_BITS <= self.activation_bits <= MAX_BITS:
            raise self._error(
                f"activation bits must be {MIN_BITS}..{MAX_BITS}, or left out as in 'w{self.weight_bits}'"
            )
        if self.group_size is not None and self.group_size < 2:
            raise self._error("a group has at least 2 weights; leave -g out for one scale per output channel")
        if self.static_range and self.activation_bits is None:
            raise ConfigurationError(
                f"scheme '{self}': static_range is of activations, and this scheme leaves them in floating point; give "
                f"activation_bits too, as in 'w{self.weight_bits}a8s'"
            )

    def _error(self, rule: str) -> ConfigurationError:
        return ConfigurationError(f"scheme '{self}': {rule}; did you mean '{self._mended()}'?")

    def _mended(self) -> str:
        def clamp(bits: int) -> int:
            return min(max(bits, MIN_BITS), MAX_BITS)

        activation = "" if self.activation_bits is None else f"a{clamp(self.activation_bits)}{self._range_mark}"
        group = "" if self.group_size is None or self.group_size < 2 else f"-g{self.group_size}"
        return f"w{clamp(self.weight_bits)}{activation}{group}"

    def __str__(self) -> str:
        """The scheme as it is written in a recipe: `w4a8-g32`, or `w4a8s-g32` with static ranges."""
        activation = "" if self.activation_bits is None else f"a{self.activation_bits}{self._range_mark}"
        group = "" if self.group_size is None else f"-g{self.group_size}"
        return f"w{self.weight_bits}{activation}{group}"

    @property
    def _range_mark(self) -> str:
        return "s" if self.static_range else ""

    @classmethod
    def parse(cls, text: str) -> "LayerScheme":
        """Read `w<bits>[a<bits>[s]][-g<size>]`.

        Raises:
            ConfigurationError: Another form, or numbers out of range.
        """
        match = _SCHEME.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            hint = nearest(text.lower(), _EXAMPLES) if isinstance(text, str) else ""
            raise ConfigurationError(
                f"scheme {text!r}: allowed are w<weight bits>, w<weight bits>a<activation bits>, the latter with s for "
                f"static ranges, and each with -g<group size>, such as {', '.join(_EXAMPLES[:4])}, w8a8s or "
                f"w3a8-g32{hint}"
            )
        weight, activation, mark, group = match.groups()
        activation_bits, group_size = (None if number is None else int(number) for number in (activation, group))
        return cls(int(weight), activation_bits, group_size, mark is not None)


@dataclass(frozen=True)
class QuantScheme:
    """The deployment grid of a run.

    Args:
        scheme: Grid of most layers: `w4a8`, `w3a4`, `w4` (weights only), `w3a8-g32` (32 weights share a scale), `w4a4s`
            (activations have static ranges).
        edge_bits: Weight bits of the first and the last quantizable layer, and their activation bits where `scheme`
            quantizes activations; one scale per output channel, ranges as in `scheme`. None: they follow `scheme`.
        overrides: Name pattern (as in fnmatch: `*`, `?`, `[...]`) to a scheme, or to `fp` for a layer that stays
            unquantized. The first pattern that matches a layer wins, and wins over `edge_bits`.

    Raises:
        ConfigurationError: A scheme that cannot be read, or bits outside 2..8.
    """

    scheme: str = "w4a8"
    edge_bits: int | None = 8
    overrides: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Check everything that needs no module."""
        LayerScheme.parse(self.scheme)
        if self.edge_bits is not None and not MIN_BITS <= self.edge_bits <= MAX_BITS:
            raise ConfigurationError(
                f"edge_bits {self.edge_bits}: must be {MIN_BITS}..{MAX_BITS}, or null for no exception"
            )
        for pattern, text in (self.overrides or {}).items():
            try:
                _parse_override(text)
            except ConfigurationError as error:
                raise ConfigurationError(f"override {pattern!r}: {error} (or 'fp' for no quantization)") from error

    def __str__(self) -> str:
        """The scheme of most layers: `w4a8`."""
        return str(LayerScheme.parse(self.scheme))

    @classmethod
    def parse(cls, scheme: "str | QuantScheme") -> "QuantScheme":
        """Accept a scheme's text, with the default edges, or a QuantScheme as it is.

        Raises:
            ConfigurationError: See the class.
        """
        return scheme if isinstance(scheme, QuantScheme) else cls(scheme)

    @property
    def has_static_ranges(self) -> bool:
        """Whether the scheme or one of its overrides asks for static activation ranges."""
        grids = [LayerScheme.parse(self.scheme), *map(_parse_override, (self.overrides or {}).values())]
        return any(grid is not None and grid.static_range for grid in grids)

    def for_layers(self, module: nn.Module) -> dict[str, LayerScheme]:
        """The grid of every layer that is quantized.

        Args:
            module: Any module with `nn.Linear`, `nn.Conv1d` or `nn.Conv2d` layers (exactly these types, as they are or
                prepared by a lane, and with a weight of their own: not one that spectral_norm or weight_norm computes).
                First and last are meant in the order of `module.named_modules()`, that is the order of registration.

        Returns:
            Layer name to grid, in module order.

        Raises:
            ConfigurationError: Nothing to quantize, an override that matches no layer, or a group that does not
                divide a layer's flattened input.
        """
        layers = {name: layer for name, layer in module.named_modules() if _is_quantizable(layer)}
        names = list(layers)
        if not names:
            raise ConfigurationError(
                f"{type(module).__name__} has nothing to quantize under scheme '{self}': no nn.Linear, nn.Conv1d or "
                "nn.Conv2d layer (subclasses and normed weights do not count); leave the scheme out to train in fp"
            )
        self._check_overrides(names)
        grids = {name: grid for name in names if (grid := self._grid(name, name in (names[0], names[-1])))}
        if not grids:
            raise ConfigurationError(
                f"{type(module).__name__} has nothing to quantize under scheme '{self}': overrides keep every layer in "
                "'fp'; give at least one layer a scheme"
            )
        for name, grid in grids.items():
            _check_group(name, grid, flattened_input_size(layers[name]))
        return grids

    def _grid(self, name: str, is_edge: bool) -> LayerScheme | None:
        for pattern, text in (self.overrides or {}).items():
            if fnmatchcase(name, pattern):
                return _parse_override(text)
        grid = LayerScheme.parse(self.scheme)
        if is_edge and self.edge_bits is not None:
            activation_bits = None if grid.activation_bits is None else self.edge_bits
            return LayerScheme(self.edge_bits, activation_bits, static_range=grid.static_range)
        return grid

    def _check_overrides(self, names: list[str]) -> None:
        for pattern in self.overrides or {}:
            if not any(fnmatchcase(name, pattern) for name in names):
                shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise ConfigurationError(
                    f"override {pattern!r} matches no layer; quantizable layers are {shown}{nearest(pattern, names)}"
                )


def plain_type(layer: nn.Module) -> type[nn.Module]:
    """A layer's own type, or the torch type that it had before a lane prepared it."""
    kind: type[nn.Module] = getattr(type(layer), "plain_type", type(layer))
    return kind


def _is_quantizable(layer: nn.Module) -> bool:
    # Weight norms in the old style leave the layer's type and make its weight a plain attribute.
    return plain_type(layer) in QUANTIZABLE_TYPES and isinstance(layer.weight, nn.Parameter)


def flattened_input_size(layer: nn.Module) -> int:
    """Weights per output channel of a quantizable layer: in_features, or in_channels / groups * kernel."""
    return layer.get_parameter("weight").shape[1:].numel()


def _parse_override(text: str) -> LayerScheme | None:
    return None if text == "fp" else LayerScheme.parse(text)


def _check_group(name: str, grid: LayerScheme, size: int) -> None:
    if grid.group_size is None or size % grid.group_size == 0:
        return
    divisors = [number for number in range(2, size + 1) if size % number == 0]
    near = sorted(sorted(divisors, key=lambda number: abs(number - (grid.group_size or 0)))[:4])
    allowed = f"divisors near it: {', '.join(map(str, near))}" if near else "it takes no groups"
    raise ConfigurationError(
        f"scheme '{grid}': a group of {grid.group_size} does not divide the {size} inputs of layer {name!r} "
        f"({allowed}); choose another group or give the layer its own scheme in overrides"
    )
