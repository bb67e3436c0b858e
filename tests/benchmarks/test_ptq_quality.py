"""The benchmark of PTQ's quality: its parts on small models, and its tables."""

import pytest
import torch
from ptq_quality import WAYS, Score, by_way, convert_in_way, difference_table, fit, scheme_name, score, spread_table
from torch import nn

from fedhq_lightning.quantize import QuantScheme


def small_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))


def task(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return images, (images.flatten(1)[:, :8].sum(1) > 0).long()


def test_training_learns_and_repeats() -> None:
    images, labels = task()
    model = fit(small_model, images, labels, epochs=15, seed=0)
    assert not model.training
    found = score(model, images, labels)
    assert found.accuracy > 90
    assert 0 < found.loss < 0.4
    assert score(fit(small_model, images, labels, epochs=15, seed=0), images, labels) == found
    assert score(fit(small_model, images, labels, epochs=15, seed=1), images, labels) != found


def test_score_counts_over_all_parts() -> None:
    images = torch.zeros(600, 2)
    images[:150, 1] = 1  # class 1
    found = score(nn.Identity(), images, torch.zeros(600, dtype=torch.long))
    assert found.accuracy == 75


def test_every_way_gives_another_model_and_leaves_the_one_given() -> None:
    images, labels = task()
    model = fit(small_model, images, labels, epochs=1, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        outputs = {
            name: convert_in_way(model, QuantScheme("w2a8"), way, images[:32])(images) for name, way in WAYS.items()
        }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    names = list(outputs)
    for i, name in enumerate(names):
        assert not any(torch.equal(outputs[name], outputs[other]) for other in names[i + 1 :])


def test_tables() -> None:
    scores = {
        "fp32": [Score(98, 0.1), Score(97, 0.2)],
        "no search": [Score(90, 0.5), Score(91, 0.5)],
        "search": [Score(95, 0.25), Score(94, 0.5)],
        "search + bias": [Score(94, 0.25), Score(94, 0.5)],
    }
    row = ("MLP", scheme_name(QuantScheme("w2a8")))
    lines = spread_table({row: by_way(scores, 1)}, digits=2).splitlines()
    assert lines[0] == "| model | scheme | fp32 | no search | search | search + bias |"
    assert lines[2].startswith("| MLP | w2a8, edges 8 | 0.15 [0.10, 0.20] | 0.50 [0.50, 0.50] |")
    lines = difference_table({row: by_way(scores, 0)}).splitlines()
    assert lines[2] == "| MLP | w2a8, edges 8 | +4.0 [+5.0, +3.0] | -0.5 [-1.0, +0.0] |"
    assert scheme_name(QuantScheme("w2a8", edge_bits=None)) == "w2a8, edges too"


def test_seeds_must_pair() -> None:
    found = {"no search": [1.0], "search": [1.0, 2.0], "search + bias": [1.0]}
    with pytest.raises(ValueError, match="shorter"):
        difference_table({("MLP", "w2a8"): found})
