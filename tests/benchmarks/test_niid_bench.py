"""The check from outside: its settings are the published ones, and a step of each algorithm runs."""

import niid_bench
import pytest

from fedhq_lightning.data.idx import DEBIAN_FOLDER


def test_the_network_is_the_published_one() -> None:
    assert sum(parameter.numel() for parameter in niid_bench.Network().parameters()) == 44_426


def test_every_cell_has_a_published_figure() -> None:
    assert niid_bench.PUBLISHED.keys() == niid_bench.PARTITIONS.keys()
    assert all(row.keys() == niid_bench.ALGORITHMS.keys() for row in niid_bench.PUBLISHED.values())


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
@pytest.mark.parametrize(("partition", "algorithm"), [("labels", "FedNova"), ("dirichlet", "SCAFFOLD")])
def test_a_step_of_each_client(partition: str, algorithm: str) -> None:
    accuracy, seconds = niid_bench.run(partition, algorithm, 0, 1, local_epochs=None, local_steps=1)
    assert 0 <= accuracy <= 100
    assert seconds > 0


def test_the_page_takes_the_cells_with_the_most_rounds() -> None:
    cells = [
        niid_bench.Cell("labels", "FedNova", 0, 10, 1, 60.0, 9.0),
        *(niid_bench.Cell("labels", "FedNova", seed, 20, 1, 70.0 + 2 * seed, 12.3) for seed in range(2)),
    ]
    page = niid_bench.page_of(cells)
    assert "| two labels each | FedNova | 20 | 2 | 71.0 [70.0, 72.0] | 70.5 | 12 |" in page
    assert page.count("FedNova |") == 1
