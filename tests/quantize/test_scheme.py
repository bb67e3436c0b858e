from collections.abc import Callable

import pytest
from torch import nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.scheme import LayerScheme, QuantScheme


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=2), nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 10)
    )


@pytest.mark.parametrize("weight_bits", range(2, 9))
@pytest.mark.parametrize("rest", ["", "a2", "a4", "a8", "-g32", "a3-g16", "a2s", "a8s-g32"])
def test_text_survives_a_round_trip(weight_bits: int, rest: str) -> None:
    text = f"w{weight_bits}{rest}"
    assert str(LayerScheme.parse(text)) == text
    assert str(QuantScheme.parse(text)) == text


def test_parse_reads_the_parts() -> None:
    assert LayerScheme.parse("w3a8-g32") == LayerScheme(3, 8, 32)
    assert LayerScheme.parse("w4") == LayerScheme(4, None, None)
    assert LayerScheme.parse("w3a4s-g8") == LayerScheme(3, 4, 8, static_range=True)


def test_parse_keeps_a_scheme_as_it_is() -> None:
    scheme = QuantScheme("w3a4", edge_bits=None)
    assert QuantScheme.parse(scheme) is scheme


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w9a8", r"scheme 'w9a8': weight bits must be 2\.\.8; did you mean 'w8a8'\?"),
        ("w1a8", r"weight bits must be 2\.\.8; did you mean 'w2a8'\?"),
        ("w4a1", r"activation bits must be 2\.\.8.*did you mean 'w4a2'\?"),
        ("w4a16-g32", r"activation bits must be 2\.\.8.*did you mean 'w4a8-g32'\?"),
        ("w4a16s", r"activation bits must be 2\.\.8.*did you mean 'w4a8s'\?"),
        ("w4s", r"scheme 'w4s': allowed are .*with s for static ranges.*w8a8s"),
        ("w4a8-s", r"scheme 'w4a8-s': allowed are .*did you mean 'w4a8'\?"),
        ("w4-g1", r"at least 2 weights.*did you mean 'w4'\?"),
        ("W4A8", r"scheme 'W4A8': allowed are .*did you mean 'w4a8'\?"),
        ("int4", r"scheme 'int4': allowed are w<weight bits>"),
        ("", r"scheme '': allowed are"),
        ("w4a8 ", r"scheme 'w4a8 ': allowed are"),
    ],
)
def test_bad_text_names_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        QuantScheme.parse(text)


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_edge_bits_out_of_range(bits: int) -> None:
    with pytest.raises(ConfigurationError, match=f"edge_bits {bits}: must be 2"):
        QuantScheme("w4a8", edge_bits=bits)


def test_bad_override_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"override 'head\.\*': scheme 'w9'.*'fp'"):
        QuantScheme("w4a8", overrides={"head.*": "w9"})


def test_static_ranges_need_activation_bits() -> None:
    with pytest.raises(ConfigurationError, match=r"static_range is of activations.*as in 'w4a8s'"):
        LayerScheme(4, static_range=True)


def test_edges_have_the_ranges_of_the_scheme_and_overrides_their_own() -> None:
    scheme = QuantScheme("w4a4s-g4", overrides={"2": "w4a4", "4": "w3a2s"})
    assert {name: str(grid) for name, grid in scheme.for_layers(network()).items()} == {
        "0": "w8a8s", "2": "w4a4", "4": "w3a2s", "5": "w8a8s",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "overrides", "expected"),
    [
        ("w4a4s", None, True),
        ("w4a4", {"0": "w8a8s"}, True),
        ("w4a4", {"0": "fp"}, False),
        ("w4a4", None, False),
    ],
)
def test_tells_whether_a_layer_may_have_a_static_range(
    scheme: str, overrides: dict[str, str] | None, expected: bool
) -> None:
    assert QuantScheme(scheme, overrides=overrides).has_static_ranges == expected


def test_edges_stay_at_eight_bits_without_groups() -> None:
    grids = QuantScheme("w4a4-g4").for_layers(network())
    assert {name: str(grid) for name, grid in grids.items()} == {
        "0": "w8a8", "2": "w4a4-g4", "4": "w4a4-g4", "5": "w8a8",
    }  # fmt: skip


def test_edges_of_a_weight_only_scheme_have_no_activation_bits() -> None:
    grids = QuantScheme("w4").for_layers(network())
    assert [str(grid) for grid in grids.values()] == ["w8", "w4", "w4", "w8"]


def test_edges_follow_the_scheme_when_turned_off() -> None:
    grids = QuantScheme("w4a8", edge_bits=None).for_layers(network())
    assert {str(grid) for grid in grids.values()} == {"w4a8"}


def test_one_layer_is_both_edges() -> None:
    assert QuantScheme("w2a2").for_layers(nn.Linear(3, 2)) == {"": LayerScheme(8, 8)}


def test_first_matching_override_wins_over_later_ones_and_edges() -> None:
    scheme = QuantScheme("w4a8", overrides={"5": "w3", "4": "fp", "?": "w6a6"})
    grids = scheme.for_layers(network())
    assert {name: str(grid) for name, grid in grids.items()} == {"0": "w6a6", "2": "w6a6", "5": "w3"}


def test_override_without_a_layer_names_the_layers() -> None:
    with pytest.raises(
        ConfigurationError, match=r"override 'head' matches no layer; quantizable layers are 0, 2, 4, 5"
    ):
        QuantScheme("w4a8", overrides={"head": "w8"}).for_layers(network())


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (
            QuantScheme("w4-g5"),
            r"a group of 5 does not divide the 36 inputs of layer '2' \(divisors near it: 2, 3, 4, 6",
        ),
        (
            QuantScheme("w4-g3"),
            r"a group of 3 does not divide the 64 inputs of layer '4' \(divisors near it: 2, 4, 8, 16",
        ),
        (QuantScheme("w4", overrides={"5": "w3-g33"}), r"'w3-g33': a group of 33 does not divide the 32 inputs"),
    ],
)
def test_group_that_does_not_divide_names_layer_size_and_divisors(scheme: QuantScheme, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        scheme.for_layers(network())


def test_group_size_counts_only_a_convolutions_own_channels() -> None:
    # 8 channels in 2 groups, kernel 3 x 3: 36 weights per output channel.
    assert QuantScheme("w4-g4", overrides={"2": "w4-g36"}).for_layers(network())["2"] == LayerScheme(4, None, 36)


@pytest.mark.parametrize(
    "module", [nn.ReLU(), nn.Sequential(nn.ConvTranspose2d(1, 1, 3)), nn.Embedding(3, 4), nn.BatchNorm1d(3)]
)
def test_nothing_to_quantize(module: nn.Module) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing to quantize under scheme 'w4a8'.*train in fp"):
        QuantScheme().for_layers(module)


def test_everything_overridden_to_fp() -> None:
    with pytest.raises(ConfigurationError, match="overrides keep every layer in 'fp'"):
        QuantScheme(overrides={"*": "fp"}).for_layers(network())


def test_subclasses_do_not_count() -> None:
    class OwnLinear(nn.Linear):
        pass

    module = nn.Sequential(nn.Linear(4, 4), OwnLinear(4, 4), nn.MultiheadAttention(4, 2))
    assert list(QuantScheme().for_layers(module)) == ["0"]


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(nn.utils.spectral_norm, id="spectral"),
        pytest.param(nn.utils.parametrizations.spectral_norm, id="spectral, parametrized"),
        pytest.param(nn.utils.parametrizations.weight_norm, id="weight, parametrized"),
        pytest.param(
            nn.utils.weight_norm,
            id="weight",
            marks=pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
        ),
    ],
)
def test_layers_whose_weight_is_computed_do_not_count(norm: Callable[[nn.Module], nn.Module]) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), norm(nn.Linear(4, 4)))
    assert list(QuantScheme().for_layers(module)) == ["0", "1"]
