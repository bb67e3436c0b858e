"""What a client's rounding loses, and what it does about it."""

from typing import Any

import pytest
import torch

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.client_uplink import ClientUplink
from fedhq_lightning.federated.wire import Link, Uplink
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.quantize.grid import quantize_weight_randomly
from fedhq_lightning.types import StateDict

from ..small_federation import SmallModule, same_bits, trainer
from ..trainer.runs import fit, records

GRID = LayerScheme(2)


def state(seed: int = 0) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(4, 6, generator=generator), "bias": torch.randn(4, generator=generator)}


def link(uplink: Uplink = "delta") -> Link:
    return Link(state(), {"weight": GRID}, uplink, "fp32")


class TestErrorFeedback:
    @pytest.mark.parametrize("uplink", ["delta", "weights"])
    def test_what_arrives_and_what_is_kept_are_what_was_meant(self, uplink: Uplink) -> None:
        there, residual = link(uplink), {"weight": torch.full((4, 6), 0.25)}
        sent = ClientUplink(there, 0, error_feedback=True).send(state(1), state(), 1, 7, residual)
        arrived = there.receive(sent.payload, 1, 7)
        meant = state(1)["weight"] + 0.25 - (state()["weight"] if uplink == "delta" else 0.0)
        assert sent.residual.keys() == {"weight"}, "a bias travels as it is"
        torch.testing.assert_close(arrived["weight"] + sent.residual["weight"], meant, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("feeds_back", [True, False])
    def test_small_changes_arrive_in_the_end(self, feeds_back: bool) -> None:
        """One value moves by much, the others by a twentieth of it: at 2 bits each of these is rounded to nothing."""
        there, base, change = link(), state(), torch.full((4, 6), 0.05)
        change[:, 0] = 1.0
        there_then = {"weight": base["weight"] + change, "bias": base["bias"]}
        uplink, residual, total = ClientUplink(there, 0, error_feedback=feeds_back), {}, torch.zeros(4, 6)
        for number in range(1, 101):
            sent = uplink.send(there_then, base, number, 7, residual)
            total += there.receive(sent.payload, number, 7)["weight"]
            residual = sent.residual
        reaches = bool((total[:, 1:] - 5.0).abs().max() < 1.5)
        assert reaches == feeds_back
        assert feeds_back or total[:, 1:].eq(0).all()

    def test_without_it_nothing_is_kept(self) -> None:
        assert ClientUplink(link(), 0).send(state(1), state(), 1, 7, {}).residual == {}


class TestStochasticRounding:
    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_its_mean_is_the_value(self, bits: int) -> None:
        weight, generator, count = state()["weight"], torch.Generator().manual_seed(1), 4000
        total, steps = torch.zeros(4, 6), torch.zeros(4, 1)
        for _ in range(count):
            integers, steps = quantize_weight_randomly(weight, LayerScheme(bits), generator)
            total += integers * steps
        # A value is at most half a step off in standard deviation: five of them over the root of the count.
        assert ((total / count - weight).abs() < 5 * 0.5 * steps / count**0.5).all()

    def test_values_on_the_grid_stay(self) -> None:
        weight = torch.tensor([[-2.0, -1.0, 0.0, 1.0]])
        integers, scales = quantize_weight_randomly(weight, GRID, torch.Generator().manual_seed(0))
        assert (integers * scales).equal(weight)

    def test_groups_have_scales_of_their_own(self) -> None:
        weight = torch.tensor([[1.0, 0.0, 0.25, 0.0]])
        _, scales = quantize_weight_randomly(weight, LayerScheme(4, group_size=2), torch.Generator())
        assert scales.shape == (1, 2)
        assert scales[0, 0] == 4 * scales[0, 1]

    def test_round_and_client_decide(self) -> None:
        there = ClientUplink(link(), 3, "stochastic")
        payloads = {
            (number, client): there.send(state(1), state(), number, client, {}).payload
            for number in (1, 2)
            for client in (5, 6)
        }
        assert payloads[1, 5] == there.send(state(1), state(), 1, 5, {}).payload
        values = {key: link().receive(payload, *key)["weight"] for key, payload in payloads.items()}
        assert not same_bits({"": values[1, 5]}, {"": values[1, 6]})
        assert not same_bits({"": values[1, 5]}, {"": values[2, 5]})


class TestUplinkBits:
    def test_decide_what_travels_and_not_what_is_deployed(self) -> None:
        many, few = (fit(scheme="w8a8", uplink_bits=bits)[0] for bits in (None, 2))
        sizes = [records(each)[1].clients[0].uplink_bytes for each in (many, few)]
        # Two layers are both edges, which keep 8 bits.
        assert sizes[0] == sizes[1]
        assert many.summary["layer_schemes"] == few.summary["layer_schemes"]

    def test_round_the_updates_of_a_run_without_a_scheme(self) -> None:
        plain, _ = fit(max_rounds=1)
        rounded, _ = fit(max_rounds=1, uplink_bits=4)
        sizes = [records(each)[1].clients[0].uplink_bytes for each in (plain, rounded)]
        assert sizes[1] < sizes[0]
        assert rounded.summary["scheme"] is None

    @pytest.mark.parametrize("bits", [1, 9, 4.0, True, "4"])
    def test_out_of_range_are_refused(self, bits: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"uplink_bits .*must be a whole number from 2 to 8, or null"):
            trainer(uplink_bits=bits)

    @pytest.mark.parametrize("key", [{"error_feedback": True}, {"uplink_rounding": "stochastic"}])
    def test_what_follows_from_rounding_is_refused_without(self, key: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match=f"{next(iter(key))} is of what is rounded on its way up"):
            trainer(**key)
        trainer(uplink_bits=8, **key)


def test_error_feedback_keeps_what_rounding_took() -> None:
    done, _ = fit(SmallModule(), scheme="w2a8", error_feedback=True, max_rounds=1)
    assert len(list(done.run_dir.glob("client_state/*/*"))) == 4
