"""The link: what the server and the clients see of each other's models."""

import pytest
import torch

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.payload import PayloadError
from fedhq_lightning.federated.wire import Downlink, Link, Uplink, warn_of_lost_changes
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.quantize.grid import round_to_grid
from fedhq_lightning.types import StateDict

from ..small_federation import same_bits

GRID = LayerScheme(4, 8, None)


def state(seed: int = 0) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "linear.weight": torch.randn(4, 6, generator=generator),
        "linear.bias": torch.randn(4, generator=generator),
        "norm.running_mean": torch.randn(4, generator=generator),
        "norm.num_batches_tracked": torch.tensor(seed),
    }


def link(uplink: Uplink = "weights", downlink: Downlink = "fp32", quantized: bool = True) -> Link:
    return Link(state(), {"linear.weight": GRID} if quantized else {}, uplink, downlink)


def floats(values: StateDict) -> StateDict:
    return {name: value for name, value in values.items() if value.is_floating_point()}


def test_down_is_fp32_by_default() -> None:
    received, num_bytes = link().down(state(1), 2)
    assert same_bits(received, state(1))
    assert num_bytes > 4 * (24 + 4 + 4)


def test_down_on_the_grid() -> None:
    received, num_bytes = link(downlink="scheme").down(state(1), 2)
    wanted = state(1) | {"linear.weight": round_to_grid(state(1)["linear.weight"], GRID)}
    assert same_bits(received, wanted)
    large = {"linear.weight": torch.randn(64, 64)}
    sizes = [Link(large, {"linear.weight": GRID}, "weights", way).down(large, 1)[1] for way in ("fp32", "scheme")]
    assert sizes[1] < sizes[0] / 6
    assert num_bytes > 0


def test_down_without_a_scheme_ignores_the_grid() -> None:
    assert same_bits(link(downlink="scheme", quantized=False).down(state(1), 2)[0], state(1))


def test_up_weights_are_rounded_to_the_grid() -> None:
    there = link()
    got = there.receive(there.up(state(1), state(), 5, "a"), 5, "a")
    wanted = floats(state(1)) | {"linear.weight": round_to_grid(state(1)["linear.weight"], GRID)}
    assert same_bits(got, wanted)
    assert same_bits(there.combine(got, state()), got)


def test_up_without_a_scheme_is_bitwise() -> None:
    there = link(quantized=False)
    assert same_bits(there.receive(there.up(state(1), state(), 5, 3), 5, 3), floats(state(1)))


def test_up_delta_is_the_rounded_difference() -> None:
    there, received = link("delta"), state()
    got = there.receive(there.up(state(1), received, 5, 3), 5, 3)
    difference = {name: value - received[name] for name, value in floats(state(1)).items()}
    difference["linear.weight"] = round_to_grid(difference["linear.weight"], GRID)
    assert same_bits(got, difference)
    back = there.combine(got, received)
    assert back.keys() == got.keys()
    for name, value in back.items():
        assert torch.equal(value, received[name] + difference[name])


def test_delta_is_closer_than_weights_for_a_small_step() -> None:
    received = state()
    local = received | {"linear.weight": received["linear.weight"] + 1e-3 * torch.randn(4, 6)}
    errors = []
    for uplink in ("weights", "delta"):
        there = link(uplink)
        got = there.combine(there.receive(there.up(local, received, 1, 0), 1, 0), received)
        errors.append((got["linear.weight"] - local["linear.weight"]).abs().max().item())
    assert errors[1] < errors[0] / 50


@pytest.mark.parametrize("uplink", ["weights", "delta"])
def test_without_grids_the_model_itself_comes_back(uplink: Uplink) -> None:
    there = link(uplink, quantized=False)
    update = there.receive(there.up(state(2), state(1), 3, 7), 3, 7)
    assert same_bits(there.combine(update, state(1)), floats(state(2)))


def test_a_tensor_that_has_grown_is_refused_by_name() -> None:
    there = link("delta")
    grown = state(2) | {"linear.bias": torch.zeros(5)}
    with pytest.raises(PayloadError, match=r"linear\.bias"):
        there.receive(there.up(grown, state(1), 3, 7), 3, 7)


@pytest.mark.parametrize("uplink", ["weights", "delta"])
def test_integer_buffers_stay_the_servers(uplink: Uplink) -> None:
    there = link(uplink)
    assert "norm.num_batches_tracked" not in there.receive(there.up(state(9), state(), 1, 0), 1, 0)
    assert there.down(state(9), 1)[0]["norm.num_batches_tracked"] == 9


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["linear.weight", "linear.bias"])
@pytest.mark.parametrize("uplink", ["weights", "delta"])
@pytest.mark.parametrize("grid", [GRID, LayerScheme(8, None, None), LayerScheme(2, 8, 3), None], ids=str)
def test_refuses_what_is_not_finite(value: float, name: str, uplink: Uplink, grid: LayerScheme | None) -> None:
    """Also where a grid would turn it into a number that looks harmless."""
    there = Link(state(), {"linear.weight": grid} if grid else {}, uplink, "fp32")
    local = state(1)
    local[name].view(-1)[-1] = value
    with pytest.raises(PayloadError, match="not finite"):
        there.receive(there.up(local, state(), 1, 0), 1, 0)


def test_refuses_an_update_of_another_round_client_or_kind() -> None:
    there = link()
    payload = there.up(state(1), state(), 5, "a")
    for round_number, client_id in ((4, "a"), (5, "b")):
        with pytest.raises(PayloadError):
            there.receive(payload, round_number, client_id)
    with pytest.raises(PayloadError, match="kind"):
        link("delta").receive(payload, 5, "a")


def test_takes_parameters_of_a_live_module() -> None:
    module = torch.nn.Linear(6, 4)
    there = Link(module.state_dict(), {"weight": GRID}, "delta", "fp32")
    received = {name: value.clone() for name, value in module.state_dict().items()}
    assert is_zero(there.receive(there.up(module.state_dict(keep_vars=True), received, 1, 0), 1, 0))


@pytest.mark.parametrize("uplink", ["weights", "delta"])
@pytest.mark.parametrize("downlink", ["fp32", "scheme"])
def test_a_tied_tensor_travels_once(uplink: Uplink, downlink: Downlink) -> None:
    """The embedding has no grid, the first layer another one than the second: three names, one tensor."""
    module = torch.nn.ModuleDict({name: torch.nn.Linear(6, 6, bias=False) for name in ("embedding", "first", "second")})
    for each in module.values():
        each.weight = module["first"].weight
    grids = {"first.weight": LayerScheme(8, 8, None), "second.weight": GRID}
    there = Link(module.state_dict(), grids, uplink, downlink)
    received, num_bytes = there.down(module.state_dict(), 1)
    assert num_bytes < 4 * 36 + 400
    payload = there.up(module.state_dict(), received, 1, 0)
    assert 36 < len(payload) < 36 + 6 * 4 + 400
    got = there.combine(there.receive(payload, 1, 0), received)
    for state_of_all in (received, got):
        assert state_of_all.keys() == module.state_dict().keys()
        assert len({value.data_ptr() for value in state_of_all.values()}) == 1
    torch.testing.assert_close(got["second.weight"], module["first"].weight.detach(), rtol=0, atol=1e-2)


def test_equal_tensors_that_are_not_tied_travel_apart() -> None:
    there = Link(
        {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(0), "d": torch.zeros(0)}, {}, "weights", "fp32"
    )
    got = there.receive(
        there.up({"a": torch.ones(2), "b": torch.zeros(2), "c": torch.zeros(0), "d": torch.zeros(0)}, {}, 1, 0), 1, 0
    )
    assert got["a"].tolist() == [1.0, 1.0]
    assert got["b"].tolist() == [0.0, 0.0]


def is_zero(values: StateDict) -> bool:
    return all(not value.any() for value in values.values())


@pytest.mark.parametrize("uplink", ["weights", "delta"])
class TestWhatStaysTheServers:
    def test_goes_down_apart_and_once(self, uplink: Uplink) -> None:
        """Frozen weights on the grid: a round's payload is that of a model without them, the bits are the same."""
        large = {"base.weight": torch.randn(64, 64), "base.scale": torch.ones(64), "mask": torch.tensor(-torch.inf)}
        grids, frozen = {"linear.weight": GRID, "base.weight": GRID}, frozenset({"base.weight", "base.scale"})
        there, all_of_it = Link(state() | large, grids, uplink, "scheme", frozen), state(1) | large
        small = Link(floats(state()), {"linear.weight": GRID}, uplink, "scheme")
        assert there.fixed_names == {*large, "norm.num_batches_tracked"}
        assert there.down(all_of_it, 3)[1] == small.down(floats(state(1)), 3)[1]
        assert 64 * 64 / 2 < there.fixed_bytes < 64 * 64 / 2 + 64 * 8 + 1000
        assert small.fixed_bytes == 0
        wanted = all_of_it | {name: round_to_grid(all_of_it[name], GRID) for name in grids}
        for number in (1, 2):
            assert same_bits(there.down(all_of_it, number)[0], wanted)
        other = all_of_it | {"base.scale": torch.zeros(64)}  # as after a resume
        assert same_bits(there.down(other, 3)[0], wanted | {"base.scale": torch.zeros(64)})

    def test_a_tied_tensor_is_frozen_when_all_of_its_names_are(self, uplink: Uplink) -> None:
        module = torch.nn.ModuleDict({name: torch.nn.Linear(6, 6, bias=False) for name in ("first", "second")})
        module["second"].weight = module["first"].weight
        both = frozenset({"first.weight", "second.weight"})
        fixed = Link(module.state_dict(), {}, uplink, "fp32", both)
        assert fixed.fixed_names == both
        received, _ = fixed.down(module.state_dict(), 1)
        assert received["first.weight"] is received["second.weight"]
        # Two Parameters on one storage, of which one is trained.
        half = Link(module.state_dict(), {}, uplink, "fp32", frozenset({"first.weight"}))
        assert half.fixed_names == frozenset()
        assert half.receive(half.up(module.state_dict(), received, 1, 0), 1, 0).keys() == {"first.weight"}

    def test_frozen_parameters(self, uplink: Uplink) -> None:
        frozen = frozenset({"linear.weight", "linear.bias"})
        there = Link(state(), {"linear.weight": GRID}, uplink, "fp32", frozen)
        got = there.receive(there.up(state(1), state(), 1, 0), 1, 0)
        assert got.keys() == {"norm.running_mean"}
        assert there.down(state(), 1)[0].keys() == state().keys()
        assert there.combine(got, state()).keys() == got.keys()

    def test_a_buffer_that_is_not_finite_from_the_start(self, uplink: Uplink) -> None:
        masked = state() | {"mask": torch.full((3, 3), -torch.inf).triu(1)}
        there = Link(masked, {"linear.weight": GRID}, uplink, "fp32")
        received, _ = there.down(masked, 1)
        assert same_bits({"mask": received["mask"]}, {"mask": masked["mask"]})
        got = there.receive(there.up(received | floats(state(1)), received, 1, 0), 1, 0)
        assert got.keys() == floats(state()).keys()

    def test_complex_tensors_are_refused_unless_frozen(self, uplink: Uplink) -> None:
        with_complex = state() | {"filter": torch.ones(3, dtype=torch.complex64)}
        with pytest.raises(ConfigurationError, match="filter: complex tensors"):
            Link(with_complex, {}, uplink, "fp32")
        there = Link(with_complex, {}, uplink, "fp32", frozenset({"filter"}))
        received, _ = there.down(with_complex, 1)
        assert received["filter"].dtype == torch.complex64
        assert "filter" not in there.receive(there.up(received, received, 1, 0), 1, 0)


def test_only_models_on_two_bits_lose_changes() -> None:
    few = {"inner.weight": LayerScheme(2, 8, None), "last.weight": LayerScheme(8, 8, None)}
    with pytest.warns(UserWarning, match="uplink 'weights' rounds every client's model to 2 bits"):
        warn_of_lost_changes("weights", few)
    warn_of_lost_changes("delta", few)
    warn_of_lost_changes("weights", {"linear.weight": LayerScheme(3, 8, None)})
    warn_of_lost_changes("weights", {})
