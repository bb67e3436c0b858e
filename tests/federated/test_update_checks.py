"""Which updates count: possible values, and norms that are not far from the others'."""

import math
import random

import pytest
import torch

from fedhq_lightning.federated.chunk_loops import CHUNK
from fedhq_lightning.federated.payload import PackedState, PayloadError, decoded
from fedhq_lightning.federated.update_checks import Norms, check_norms, check_values, limits_of, norms_of
from fedhq_lightning.quantize import LayerScheme
from fedhq_lightning.quantize.packed_weight import PackedWeight, pack_weight

NAMES = frozenset({"weight", "bias"})


def packed(weight: torch.Tensor, bits: int = 8) -> PackedWeight:
    integers, scales = pack_weight(weight, LayerScheme(bits, 8, None))
    return PackedWeight(integers, scales, bits, weight.shape, weight.dtype)


def update(seed: int = 0, rows: int = 40) -> PackedState:
    torch.manual_seed(seed)
    return {"weight": packed(torch.randn(rows, 24)), "bias": torch.randn(7), "norm.running_var": torch.rand(5) * 100}


class TestNorms:
    @pytest.mark.parametrize("rows", [40, CHUNK // 24 * 2 + 8])
    @pytest.mark.parametrize("is_model", [True, False])
    def test_they_are_those_of_the_decoded_tensors(self, rows: int, is_model: bool) -> None:
        given = update(rows=rows)
        bases = {name: torch.full(value.shape, 0.5) for name, value in given.items()} if is_model else None
        plain = {name: value - (0.5 if is_model else 0.0) for name, value in decoded(given).items()}
        parameters = torch.cat([plain[name].reshape(-1).double() for name in ("weight", "bias")]).norm()
        found = norms_of(given, bases, NAMES)
        assert found == pytest.approx((float(parameters), float(plain["norm.running_var"].double().norm())), rel=1e-5)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["bias", "norm.running_var"])
    def test_what_is_not_finite_is_refused(self, name: str, value: float) -> None:
        given = update()
        given[name].view(-1)[0] = value  # type: ignore[union-attr]  # a tensor
        with pytest.raises(PayloadError, match="not finite"):
            norms_of(given, None, NAMES)

    def test_what_no_sum_could_hold_is_refused(self) -> None:
        with pytest.raises(PayloadError, match="a magnitude of 8589934592 and more"):
            norms_of({"bias": torch.full((3,), 1e30)}, None, NAMES)


class TestValues:
    @pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, -math.inf])
    def test_scales_are_above_0(self, scale: float) -> None:
        given = update()
        check_values(given)
        given["weight"].scales[3] = scale  # type: ignore[union-attr]  # packed
        with pytest.raises(PayloadError, match="scales that are not above 0"):
            check_values(given)

    def test_variances_are_not_below_0(self) -> None:
        with pytest.raises(PayloadError, match=r"norm\.running_var: variances below 0"):
            check_values({"norm.running_var": torch.tensor([1.0, -1e-3])})

    def test_a_difference_may_take_a_variance_down_to_0(self) -> None:
        before = {"norm.running_var": torch.tensor([1.0, 3e-5])}
        check_values({"norm.running_var": torch.tensor([-1.0, -3e-5 * (1 + 1e-7)])}, before)
        with pytest.raises(PayloadError, match="variances below 0"):
            check_values({"norm.running_var": torch.tensor([-1.01, 0.0])}, before)


class TestLimits:
    def test_a_multiple_of_the_median_whatever_the_order(self) -> None:
        norms = [Norms(value, 0.0) for value in (1.0, 2.0, 3.0, 4.0, 1e9)]
        for seed in range(5):
            random.Random(seed).shuffle(norms)
            limits, usual = limits_of(norms, None, 10)
            assert limits == (30.0, math.inf)
            assert usual == (3.0, 0.0)

    def test_fewer_than_half_of_the_clients_cannot_move_it_far(self) -> None:
        honest = [Norms(1 + number / 10, 1.0) for number in range(7)]
        for hostile in (0.0, 1e-30, 1e8):
            limits, _ = limits_of([*honest, *[Norms(hostile, hostile)] * 3], None, 10)
            assert all(norm.parameters <= limits.parameters for norm in honest)
            assert limits.parameters <= 16.0

    @pytest.mark.parametrize("norms", [[], [Norms(5.0, 1.0)], [Norms(5.0, 1.0), Norms(5000.0, 1.0)]])
    def test_two_cannot_be_told_apart(self, norms: list[Norms]) -> None:
        limits, usual = limits_of(norms, Norms(1.0, 2.0), 10)
        assert limits == (math.inf, math.inf)
        assert usual == (1.0, 2.0), "of the last round that told"

    def test_clients_that_did_not_move_do_not_count(self) -> None:
        norms = [Norms(0.0, 0.0)] * 9 + [Norms(1.0, 0.0), Norms(2.0, 0.0), Norms(3.0, 0.0)]
        assert limits_of(norms, None, 10)[0].parameters == 20.0

    def test_after_a_quiet_round_what_was_usual_still_is(self) -> None:
        norms = [Norms(0.01, 1.0), Norms(0.01, 1.0), Norms(1.0, 1.0)]
        assert limits_of(norms, Norms(1.0, 1.0), 10)[0].parameters == 10.0

    @pytest.mark.parametrize(
        ("norms", "words"), [((31.0, 1.0), "the parameters by a norm of 31"), ((1.0, 9.0), "buffers")]
    )
    def test_beyond_a_limit_is_refused(self, norms: tuple[float, float], words: str) -> None:
        check_norms(Norms(30.0, 8.0), Norms(30.0, 8.0))
        with pytest.raises(PayloadError, match=words):
            check_norms(Norms(*norms), Norms(30.0, 8.0))
