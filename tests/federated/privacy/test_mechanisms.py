"""What a mechanism is refused for."""

import math
from typing import Any

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.privacy import CentralPrivacy, LocalPrivacy

GIVEN = {"noise_multiplier": 1.0, "delta": 1e-5}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"noise_multiplier": 0}, "noise_multiplier 0: must be above 0"),
        ({"noise_multiplier": math.inf}, "noise_multiplier inf: must be above 0"),
        ({"noise_multiplier": "much"}, "noise_multiplier 'much': must be above 0"),
        ({"delta": 0.0}, "delta 0.0: must be above 0"),
        ({"delta": 1}, "delta 1: must be below 1"),
        ({"delta": 2}, "delta 2: must be above 0 and at most 1"),
        ({"max_epsilon": 0}, "max_epsilon 0: must be above 0; null for no limit"),
        ({"max_epsilon": -1}, "max_epsilon -1: must be above 0"),
        ({"accountant": "rpd"}, "accountant 'rpd': allowed are rdp, prv; did you mean 'rdp'?"),
    ],
)
def test_what_is_out_of_range(changed: dict[str, Any], words: str) -> None:
    for kind, norm in ((CentralPrivacy, "clip_norm"), (LocalPrivacy, "max_grad_norm")):
        with pytest.raises(ConfigurationError) as refused:
            kind(**(GIVEN | {norm: 1.0} | changed))
        assert f"{kind.__name__} {words}" in str(refused.value)


@pytest.mark.parametrize("norm", [0, -1.0, math.nan, True, None])
def test_norms(norm: Any) -> None:
    with pytest.raises(ConfigurationError, match="CentralPrivacy clip_norm"):
        CentralPrivacy(**GIVEN, clip_norm=norm)
    with pytest.raises(ConfigurationError, match="LocalPrivacy max_grad_norm"):
        LocalPrivacy(**GIVEN, max_grad_norm=norm)


def test_what_the_summary_is_told() -> None:
    told = CentralPrivacy(1.5, 0.25, 1e-4, max_epsilon=3.0).described(2.5, True)
    assert told == {
        "mechanism": "CentralPrivacy",
        "hides": "client",
        "epsilon": 2.5,
        "delta": 1e-4,
        "noise_multiplier": 1.5,
        "norm": 0.25,
        "accountant": "rdp",
        "max_epsilon": 3.0,
        "ended_by_budget": True,
    }
    assert LocalPrivacy(1.5, 0.25, 1e-4).described(None, False)["norm"] == 0.25
