"""Epsilon: Opacus' own numbers, budgets, and what no accountant can account."""

import subprocess
import sys
import warnings

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.privacy import CentralPrivacy, LocalPrivacy
from fedhq_lightning.federated.privacy.accounting import Accountant
from fedhq_lightning.federated.privacy.ledger import CentralLedger


def by_opacus(kind: type, noise: float, rate: float, steps: int, delta: float) -> float:
    """Step by step, as Opacus' engine would."""
    accountant = kind()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise, sample_rate=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.1, 40), (0.8, 0.01, 300), (2.0, 1.0, 7), (4.0, 0.5, 1)])
def test_is_opacus_own_number(noise: float, rate: float, steps: int) -> None:
    accountant = Accountant(CentralPrivacy(noise, 1.0, 1e-5))
    assert accountant.epsilon(rate, steps) == by_opacus(RDPAccountant, noise, rate, steps, 1e-5)


def test_prv_is_opacus_own_number_and_tighter() -> None:
    given = 1.0, 0.1, 1e-5
    prv = Accountant(LocalPrivacy(given[0], 1.0, given[2], accountant="prv")).epsilon(given[1], 40)
    assert prv == by_opacus(PRVAccountant, given[0], given[1], 40, given[2])
    assert prv < Accountant(LocalPrivacy(given[0], 1.0, given[2])).epsilon(given[1], 40)


def test_nothing_is_spent_before_the_first_step() -> None:
    assert Accountant(CentralPrivacy(1.0, 1.0, 1e-5)).epsilon(0.1, 0) == 0


@pytest.mark.parametrize("budget", [1.8, 2.5, 6.0])
def test_most_steps_are_the_last_within_the_budget(budget: float) -> None:
    accountant = Accountant(CentralPrivacy(1.0, 1.0, 1e-5))
    most = accountant.most_steps(0.05, budget, 10_000)
    assert 0 < most < 10_000
    assert accountant.epsilon(0.05, most) <= budget < accountant.epsilon(0.05, most + 1)
    assert accountant.most_steps(0.05, budget, 3) == min(3, most)


def test_the_ledger_ends_before_the_round_that_would_pass() -> None:
    ledger = CentralLedger(CentralPrivacy(1.0, 1.0, 1e-5, max_epsilon=2.5), 0.05, 10_000)
    last = next(number for number in range(10_000) if ledger.is_over(number, {}))
    spent = [ledger.epsilon(number, None, {}, ()) for number in (last, last + 1)]
    assert spent[0] <= 2.5 < spent[1]  # type: ignore[operator]  # neither is None


@pytest.mark.parametrize(
    ("privacy", "rate", "words"),
    [
        (CentralPrivacy(1.0, 1.0, 1e-5, max_epsilon=0.5), 0.5, "max_epsilon 0.5 is passed by the first round"),
        (CentralPrivacy(1e-3, 1.0, 1e-5), 0.5, "out of the range of the RDP accountant: noise_multiplier 0.001"),
        (CentralPrivacy(0.1, 1.0, 1e-5, accountant="prv"), 0.5, "out of the range of the PRV accountant"),
        (CentralPrivacy(1.0, 1.0, 1e-5, accountant="prv"), 1.0, "accountant 'prv' is made for members drawn at random"),
    ],
)
def test_what_cannot_be_accounted_or_afforded(privacy: CentralPrivacy, rate: float, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        CentralLedger(privacy, rate, 20)


def test_without_opacus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ConfigurationError, match=r"trainer\.privacy takes opacus: pip install .*\[privacy\]'"):
        Accountant(CentralPrivacy(1.0, 1.0, 1e-5))


def test_the_import_of_opacus_leaves_logging_alone() -> None:
    """In a process of its own, where nobody has imported it."""
    code = """
import logging
from fedhq_lightning.federated.privacy import CentralPrivacy
from fedhq_lightning.federated.privacy.accounting import Accountant
Accountant(CentralPrivacy(1.0, 1.0, 1e-5)).epsilon(0.1, 3)
import sys
assert "opacus" in sys.modules
assert logging.getLogger().handlers == []
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
