"""The allocation benchmark: its settings resolve, and its section is made of whatever cells are there."""

import allocation
import pytest
import yaml

from fedhq_lightning.experiments.comparison import Kept
from fedhq_lightning.experiments.contestants import BEST_FIXED, contestant
from fedhq_lightning.launch.resolve import resolve

from ..experiments.made_cells import made_cell


@pytest.mark.parametrize("name", allocation.GRIDS)
def test_every_setting_is_a_recipe(name):
    grid = allocation.GRIDS[name]
    keys = allocation.keys_of(grid, [])
    assert len({allocation.file_name(grid, *key) for key in keys}) == len(keys) == len(grid.models) * len(grid.cells)
    model, scheme, alpha = keys[-1]
    content = yaml.safe_load(resolve("setting", allocation.recipe(grid, model, scheme, alpha)).recipe.text)
    assert content["trainer"]["scheme"] == scheme
    assert content["trainer"]["fleet"] == grid.trainer.get("fleet", "mixed")
    assert content["data"]["init_args"]["partitioner"]["init_args"]["alpha"] == alpha
    for allocator in set(grid.allocators) - {BEST_FIXED}:
        contestant(allocator)


def test_only_some_settings():
    small, time = allocation.GRIDS["small"], allocation.GRIDS["time"]
    assert allocation.keys_of(small, ["w2a8:0.05", "lenet:w4a8:5"]) == [("lenet", "w2a8", 0.05), ("lenet", "w4a8", 5.0)]
    assert allocation.keys_of(time, ["w4a8:0.3"]) == [("vit", "w4a8", 0.3), ("resnet", "w4a8", 0.3)]
    assert allocation.file_name(time, "vit", "w4a8", 0.3) == "vit-w4a8-0.3"
    with pytest.raises(SystemExit, match=r"the grid has lenet:w4a8:0.05"):
        allocation.keys_of(small, ["w5a8:0.05"])


def test_the_seeds_that_choose_are_not_compared():
    assert not set(allocation.GRID_SEEDS) & set({seed for grid in allocation.GRIDS.values() for seed in grid.seeds})


def test_the_section_of_some_cells():
    cells = []
    for seed, gain in ((0, 0.10), (1, 0.11), (2, 0.12)):
        cells.append(made_cell("all-ptq", seed, 10.0, [0.1, 0.5, 0.5, 0.5]))
        cells.append(made_cell("all-qat-fake", seed, 20.0, [0.1, 0.6, 0.6, 0.6]))
        cells.append(made_cell("hybrid", seed, 10.0, [0.1, 0.5 + gain, 0.5 + gain, 0.5 + gain]))
        cells[-1].rounds.update({"allocation/incumbent": [None, 0, 0, 0], "allocation/share": [None, 0.0, 0.3, 0.0]})
    cells[-1].rounds["allocation/incumbent"][3] = 1
    text = allocation.section("small", {"w2a8-0.05": Kept(cells, [])})
    lines = [line for line in text.splitlines() if line.startswith("| w2a8-0.05")]
    at, end, lost, seconds, differences, times = lines
    assert "Of its 3 runs 1 took up a boundary\nthat they tried, and 0 began with a `share` above 0." in text
    assert at.split(" | ")[2:4] == ["50.0 ± 0.0", "60.0 ± 0.0"]
    assert "61.0 ± 1.0" in end
    assert lost.split(" | ")[2] == "1.0 ± 0.0"
    assert seconds.split(" | ")[2:4] == ["30.0 ± 0.0", "60.0 ± 0.0"]
    # 11 points, deviation 1, three seeds: 4.303 / sqrt(3) on either side.
    assert differences.split(" | ")[1:3] == ["", "**+11.0 [+8.5, +13.5]**"]  # no all-fp among them
    # 30 seconds against 60, and the straggler's times are 1 to 2.
    assert times.split(" | ")[1:] == ["0.50 [0.50, 0.50]", "- (0 of 3)", "", "", "0.50", " |"]
