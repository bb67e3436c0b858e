"""The benchmark of what privacy costs: its noise comes to the epsilon it stands for, and a cell is a run."""

import privacy_utility
import pytest

from fedhq_lightning.federated.privacy import CentralPrivacy
from fedhq_lightning.federated.privacy.accounting import Accountant


@pytest.mark.parametrize(("kind", "rate", "steps"), [("central", 0.2, 15), ("local", 0.16, 42)])
def test_the_noise_of_an_epsilon(kind: str, rate: float, steps: int) -> None:
    setting = privacy_utility.SETTINGS[kind]
    noise = privacy_utility.noise_for(4.0, setting, setting.rounds, kind)
    assert Accountant(CentralPrivacy(noise, 1.0, setting.delta)).epsilon(rate, steps) == pytest.approx(4.0, abs=0.05)


def test_a_cell() -> None:
    setting = privacy_utility.Setting(40, 3, 1, 1, 64, 1e-3)
    found = privacy_utility.run("central", setting, 1, 1.0, None, 0)
    assert 0 <= found <= 1
    assert privacy_utility.spread([0.5, 0.75]) == "62.5 [50.0, 75.0]"
