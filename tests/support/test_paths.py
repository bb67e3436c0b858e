"""Paths as users write them."""

import os
from pathlib import Path

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.paths import expand, expand_if_given, expand_path


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("MINE", "~/mine")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("$DATA/x", "/data/x"),
        ("${DATA}/x", "/data/x"),
        ("a/$DATA", "a//data"),
        ("${DATA}x$EMPTY", "/datax"),
        ("$MINE/y", "/home/me/mine/y"),
        ("a/~/b", "a/~/b"),
        ("~backup.yaml", "~backup.yaml"),
        ("costs $5/100$", "costs $5/100$"),
        ("with spaces/", "with spaces/"),
        ("wandb:me/project/run", "wandb:me/project/run"),
        ("", ""),
    ],
)
def test_expanded(given: str, meant: str) -> None:
    assert expand(given) == meant


def test_as_os_does() -> None:
    for given in ("~/x", "$DATA/x", "~root/x"):
        assert expand(given) == os.path.expanduser(os.path.expandvars(given))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("$UNSET/x", r"root '\$UNSET/x': \$UNSET is not set in the environment; set it"),
        ("${UNSET}/x", r"root '\$\{UNSET\}/x': \$UNSET is not set"),
        ("${oc.env:DATA}/x", r"\$\{oc\.env:DATA\} is not resolved here; .* such as \$DATA"),
        ("${data.root}/x", r"\$\{data\.root\} is not resolved here"),
        ("${DATA/x", r"\$\{DATA/x is not resolved here"),
        ("${}", r"\$\{\} is not resolved here"),
        ("~no-such-user/x", "there is no user 'no-such-user' here"),
    ],
)
def test_refused_by_name(given: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        expand(given, "root")


def test_types_stay() -> None:
    assert expand_path("~/x") == Path("/home/me/x")
    assert expand_if_given(Path("~/x")) == Path("/home/me/x")
    assert expand_if_given("~/x") == "/home/me/x"
    assert expand_if_given(None) is None
    assert expand_if_given(3) == 3
