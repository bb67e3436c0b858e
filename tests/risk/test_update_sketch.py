"""Sketches of updates: linear, faithful to angles, the same everywhere."""

import math

import pytest
import torch

from fedhq_lightning.risk import Sketcher, direction_divergence
from fedhq_lightning.types import StateDict


def state(seed: int, scale: float = 1.0) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "linear.weight": scale * torch.randn(64, 512, generator=generator),
        "linear.bias": scale * torch.randn(64, generator=generator),
        "scale": scale * torch.randn((), generator=generator),
    }


def flat(value: StateDict) -> torch.Tensor:
    return torch.cat([each.double().flatten() for each in value.values()])


def test_directions() -> None:
    x = torch.tensor([3.0, 0.0, 4.0])
    assert direction_divergence(x, x) == pytest.approx(0.0, abs=1e-15)
    assert direction_divergence(x, -2 * x) == pytest.approx(2.0)
    assert direction_divergence(x, torch.tensor([0.0, 1.0, 0.0])) == 1.0
    assert direction_divergence(1e30 * x, 1e-30 * torch.tensor([1.0, 0, 0])) == pytest.approx(1 - 0.6)
    assert direction_divergence(x.double() * 1e200, x.double() * 1e200) == pytest.approx(0.0, abs=1e-15)
    for bad in (0 * x, x / 0, x * math.nan):
        assert direction_divergence(bad, x) is None
        assert direction_divergence(x, bad) is None


def test_a_sketch_keeps_angles() -> None:
    """Also of structured updates: here all of it lies in 8 of 512 columns."""
    errors = []
    for seed in range(12):
        common, own, other = state(3 * seed), state(3 * seed + 1), state(3 * seed + 2)
        x = {name: common[name] + own[name] for name in common}
        y = {name: common[name] + 0.3 * other[name] for name in common}
        if seed % 2:
            for each in (x, y):
                each["linear.weight"][:, 8:] = 0
        exact = direction_divergence(flat(x), flat(y))
        sketcher = Sketcher(seed)
        found = direction_divergence(sketcher.sketch(x), sketcher.sketch(y))
        assert exact is not None
        assert found is not None
        errors.append(found - exact)
    spread = math.sqrt(sum(each**2 for each in errors) / len(errors))
    assert 0.002 < spread < 1.5 / math.sqrt(1024), errors


def test_a_sketch_is_linear_and_depends_on_nothing_but_seed_names_and_values() -> None:
    sketcher, value = Sketcher(7), state(0)
    sketch = sketcher.sketch(value)
    assert sketch.shape == (1024,)
    backwards = dict(reversed(list(value.items())))
    assert torch.equal(Sketcher(7).sketch(backwards), sketch)
    not_contiguous = value | {"linear.weight": value["linear.weight"].t().contiguous().t()}
    assert torch.equal(sketcher.sketch(not_contiguous), sketch)
    assert not torch.equal(Sketcher(8).sketch(value), sketch)
    assert not torch.equal(sketcher.sketch({f"{name}.": each for name, each in value.items()}), sketch)
    total = {name: value[name].double() + state(1)[name].double() for name in value}
    torch.testing.assert_close(sketcher.sketch(total), sketch + sketcher.sketch(state(1)), rtol=0, atol=1e-9)


def test_sizes() -> None:
    assert Sketcher(0, 2**14).sketch(state(0)).shape == (2**14,)
    for size in (0, 2**14 + 1):
        with pytest.raises(ValueError, match="must be 1 to 16384"):
            Sketcher(0, size)
