import random
import subprocess
import sys
import tracemalloc

import pytest

from fedhq_lightning.allocation import AllocationContext, FixedAllocator
from fedhq_lightning.errors import ConfigurationError


def context(client_ids, seed=0, divergence=None) -> AllocationContext:
    return AllocationContext(client_ids, seed, client_seconds=lambda client_id, mode: 1.0, divergence=divergence)


def qat_clients(allocator, client_ids, **kwargs) -> set:
    allocator.begin(context(client_ids, **kwargs))
    return {client_id for client_id, mode in allocator.propose(1, client_ids).modes.items() if mode == "qat"}


@pytest.mark.parametrize("mode", ["fp", "ptq", "qat"])
def test_a_mode_is_everybodys(mode):
    allocator = FixedAllocator(mode)
    allocator.begin(context(range(5)))
    assert allocator.propose(3, [4, 0, 2]).modes == {4: mode, 0: mode, 2: mode}


@pytest.mark.parametrize(
    ("share", "num_clients", "expected"),
    [(0.0, 20, 0), (0.5, 20, 10), (0.25, 10, 3), (1 / 3, 10, 3), (1.0, 7, 7), (1, 3, 3), (0.01, 20, 0)],
)
@pytest.mark.parametrize("by", ["random", "divergence"])
def test_a_share_is_exact_over_all_clients(share, num_clients, expected, by):
    chosen = qat_clients(FixedAllocator(share, by=by), range(num_clients), divergence=lambda client_id, measure: 0.5)
    assert len(chosen) == expected


def test_a_random_share_depends_on_the_seed_and_not_on_the_order_of_the_list():
    ids = list(range(40))
    chosen = qat_clients(FixedAllocator(0.5), ids, seed=1)
    assert chosen == qat_clients(FixedAllocator(0.5), ids[::-1], seed=1)
    assert chosen != qat_clients(FixedAllocator(0.5), ids, seed=2)


def test_a_larger_share_keeps_everybody_of_a_smaller_one():
    ids = list(range(100))
    picked = [qat_clients(FixedAllocator(share), ids) for share in (0.1, 0.4, 0.9)]
    assert picked[0] < picked[1] < picked[2]


def test_a_client_is_picked_about_as_often_as_any_other():
    times = [0] * 20
    for seed in range(400):
        for client_id in qat_clients(FixedAllocator(0.25), range(20), seed=seed):
            times[client_id] += 1
    # Binomial(400, 1/4): mean 100, standard deviation 8.7; five of them either way.
    assert all(56 < count < 144 for count in times)


def test_the_choice_never_changes():
    # Recorded: a run that resumes after an update of the package must find the same plan.
    assert qat_clients(FixedAllocator(0.3), range(20), seed=0) == {2, 3, 7, 8, 10, 18}


def test_of_many_clients_a_random_share_looks_at_those_who_are_drawn():
    ids = range(10**9)
    allocator = FixedAllocator(0.3)
    tracemalloc.start()
    allocator.begin(context(ids))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6
    some = random.Random(1).sample(ids, 2000)
    in_qat = sum(mode == "qat" for mode in allocator.propose(1, some).modes.values())
    assert abs(in_qat - 600) < 85  # standard deviation 20.5
    for share, expected in ((0.0, {"ptq"}), (1.0, {"qat"})):
        allocator = FixedAllocator(share)
        allocator.begin(context(ids))
        assert set(allocator.propose(1, some[:50]).modes.values()) == expected


def test_of_many_clients_the_most_divergent_are_told_by_a_sample():
    ids, asked = range(10**9), []

    def divergence(client_id, measure):
        asked.append(client_id)
        return client_id % 100 / 100

    for share in (0.0, 0.3, 1.0):
        allocator = FixedAllocator(share, by="divergence")
        allocator.begin(context(ids, divergence=divergence))
        modes = allocator.propose(1, range(5_000, 5_100)).modes
        in_qat = [client_id for client_id, mode in modes.items() if mode == "qat"]
        assert abs(len(in_qat) - 100 * share) <= 6
        assert all(each >= 5_100 - len(in_qat) - 1 for each in in_qat)
    assert len(asked) < 4000


def test_by_divergence_picks_the_most_divergent():
    divergence = {0: 0.1, 1: 0.9, 2: 0.5, 3: 0.7}
    assert qat_clients(
        FixedAllocator(0.5, by="divergence"), [0, 1, 2, 3], divergence=lambda client_id, measure: divergence[client_id]
    ) == {1, 3}


def test_by_divergence_breaks_ties_by_the_seed_not_by_the_order():
    ids = list(range(30))
    chosen = [
        qat_clients(FixedAllocator(0.5, by="divergence"), order, seed=seed, divergence=lambda client_id, measure: 0.0)
        for order, seed in ((ids, 0), (ids[::-1], 0), (ids, 1))
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_by_divergence_without_labels_is_refused():
    with pytest.raises(ConfigurationError, match=r"label counts.*label_counts"):
        FixedAllocator(0.5, by="divergence").begin(context(range(4)))


def test_a_divergence_that_is_no_number_is_refused():
    with pytest.raises(ConfigurationError, match="client 0 is not a number"):
        FixedAllocator(0.5, by="divergence").begin(
            context(range(4), divergence=lambda client_id, measure: float("nan"))
        )


def test_map_keys_may_be_text_or_numbers():
    for given in ({"0": "qat", "1": "ptq", "north": "fp"}, {0: "qat", 1: "ptq", "north": "fp"}):
        allocator = FixedAllocator(given)
        allocator.begin(context([0, "1", "north"]))
        assert allocator.propose(1, [0, "1", "north"]).modes == {0: "qat", "1": "ptq", "north": "fp"}


def test_a_map_that_leaves_clients_out_is_refused():
    with pytest.raises(ConfigurationError, match="leaves out 2 of 3 clients, the first is 1"):
        FixedAllocator({0: "qat"}).begin(context([0, 1, 2]))


def test_a_map_with_an_unknown_client_is_refused():
    with pytest.raises(ConfigurationError, match="'nroth', which the data module does not have; did you mean 'north'"):
        FixedAllocator({"north": "qat", "nroth": "ptq"}).begin(context(["north"]))


def test_a_map_that_names_a_client_twice_is_refused():
    with pytest.raises(ConfigurationError, match="twice"):
        FixedAllocator({1: "qat", "1": "ptq"}).begin(context([1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("qta",), "mode 'qta'; allowed are fp, ptq, qat; did you mean 'qat'"),
        (({1: "int8"},), "mode 'int8' for client 1"),
        (({},), "map is empty"),
        ((1.5,), "allocation 1.5"),
        ((-0.1,), "allocation -0.1"),
        ((float("nan"),), "allocation nan"),
        ((True,), "allocation True"),
        ((None,), "allocation None"),
        ((0.5, "divergent"), "by='divergent'.*did you mean 'divergence'"),
        (("qat", "divergence"), "give a number 0 to 1"),
        (({1: "qat"}, "divergence"), "give a number 0 to 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        FixedAllocator(*arguments)


@pytest.mark.parametrize(
    ("value", "expected"), [("qat", "qat"), ("0.5", 0.5), ('{"3": qat, north: ptq}', {"3": "qat", "north": "ptq"})]
)
def test_arguments_can_be_written_in_a_recipe(value, expected):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FixedAllocator, "allocator")
    built = parser.instantiate(parser.parse_args([f"--allocator.allocation={value}"])).allocator
    if isinstance(expected, dict):
        assert {str(client_id): mode for client_id, mode in built.allocation.items()} == expected
    else:
        assert built.allocation == expected


def test_allocation_imports_neither_lightning_nor_torch():
    code = (
        "import sys, fedhq_lightning.allocation.fixed; "
        "assert not {'lightning', 'torch'} & set(sys.modules), 'imported too much'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
