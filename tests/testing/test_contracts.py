"""Each test of each contract passes on a sound object and fails on a broken one."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.testing import AggregatorContract, AllocatorContract, DataModuleContract

from . import broken_aggregators, broken_allocators, broken_data_modules

CONTRACTS: dict[type, Any] = {
    AllocatorContract: broken_allocators,
    AggregatorContract: broken_aggregators,
    DataModuleContract: broken_data_modules,
}
CASES = [
    pytest.param(contract, test, *case, id=f"{contract.__name__}-{test}")
    for contract, broken in CONTRACTS.items()
    for test, case in broken.BROKEN.items()
]


class TestSoundAllocator(AllocatorContract):
    make = broken_allocators.Sound


class TestSoundAggregator(AggregatorContract):
    make = broken_aggregators.Sound


class TestSoundData(DataModuleContract):
    make = broken_data_modules.Sound


def run(contract: type, test: str, make: Any, request: pytest.FixtureRequest) -> None:
    """One test of a contract, as pytest runs it."""
    tests = type("Tests", (contract,), {"make": make})()
    method = getattr(tests, test)
    method(**{name: request.getfixturevalue(name) for name in inspect.signature(method).parameters})


@pytest.mark.parametrize(("contract", "test", "broken", "error"), CASES)
def test_a_broken_object_is_caught(
    contract: type, test: str, broken: Any, error: type[BaseException], request: pytest.FixtureRequest
) -> None:
    with pytest.raises(error):
        run(contract, test, broken, request)


def test_a_state_that_nobody_refuses_is_caught(request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        run(AllocatorContract, "test_another_allocators_state_is_refused", broken_allocators.TakesAnyState, request)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_every_test_is_seen_to_fail(contract: type) -> None:
    tests = {name for name in dir(contract) if name.startswith("test_")}
    apart = {"test_another_allocators_state_is_refused"} if contract is AllocatorContract else set()
    assert tests == CONTRACTS[contract].BROKEN.keys() | apart


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_every_test_says_its_sentence(contract: type) -> None:
    for name in (name for name in dir(contract) if name.startswith("test_")):
        sentence = inspect.getdoc(getattr(contract, name)) or ""
        assert sentence.endswith("."), name
        assert "\n" not in sentence, name


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_what_is_missing_is_named(contract: type) -> None:
    with pytest.raises(NotImplementedError, match="gives no `make`"):
        contract().make()


@pytest.mark.corner
def test_pytest_collects_and_explains(tmp_path: Path) -> None:
    """In a project of one's own, without this one's settings."""
    Path("test_mine.py").write_text(
        "from fedhq_lightning.allocation import Allocator\n"
        "from fedhq_lightning.testing import AllocatorContract\n"
        "from fedhq_lightning.types import Plan\n"
        "class Mine(Allocator):\n"
        "    def propose(self, round_number, cohort):\n"
        "        return Plan(dict.fromkeys(cohort[1:], 'qat'))\n"
        "class TestMine(AllocatorContract):\n"
        "    def make(self):\n"
        "        return Mine()\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert found.returncode == 1, found.stdout + found.stderr
    assert "FAILED test_mine.py::TestMine::test_a_plan_names_the_cohort_and_nobody_else" in found.stdout
    # The values, which pytest tells only of modules whose assertions it has rewritten.
    assert "Extra items in the right set" in found.stdout


def test_without_pytest_one_sentence_says_so() -> None:
    code = "import sys; sys.modules['pytest'] = None; import fedhq_lightning.testing"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode != 0
    assert "ImportError: fedhq_lightning.testing runs under pytest, which is not installed" in found.stderr


def test_names_are_public() -> None:
    import fedhq_lightning.testing as testing

    assert sorted(testing.__all__) == sorted(contract.__name__ for contract in CONTRACTS)
    assert set(testing.__all__) <= set(dir(testing))
