"""Which allocators can be named, and what is said of the others."""

from pathlib import Path

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.contestants import NAMES, check_names, contestant, grid, reference_of


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"best-fixed"}))
def test_built_in_names(name):
    found = contestant(name)
    assert found.name == name
    assert found.class_path.startswith("fedhq_lightning.callbacks.")


def test_fake_is_what_users_have_today():
    assert contestant("all-qat-fake").lanes == {"qat_kernel": "fake"}
    assert contestant("all-qat").lanes == {}
    assert contestant("all-qat").described() != contestant("all-qat-fake").described()


def test_a_boundary_by_numbers():
    found = contestant("fixed:0.50:0.25")
    assert found.name == "fixed:0.5:0.25"
    assert found.init_args == {"fine": False, "boundary": {"slack": 0.5, "share": 0.25}, "qat_from": 0.0}


@pytest.mark.parametrize("text", ["fixed:", "fixed:1", "fixed:-1:0", "fixed:0:1.5", "fixed:nan:0", "fixed:a:b"])
def test_bad_boundaries(text):
    with pytest.raises(ConfigurationError, match="give fixed:SLACK:SHARE with a slack above -1"):
        contestant(text)


def test_own_classes_and_files():
    assert contestant("mine=my_module.MyAllocator").class_path == "my_module.MyAllocator"
    Path("mine.yaml").write_text("class_path: a.B\ninit_args: {x: 3}\n")
    found = contestant("mine-3=mine.yaml")
    assert (found.name, found.class_path, found.init_args) == ("mine-3", "a.B", {"x": 3})
    assert "trainer" not in found.described()  # or the cells that are kept would be others
    Path("mean.yaml").write_text("class_path: a.B\ntrainer: {ema_decay: 0.8}\n")
    assert contestant("mean=mean.yaml").described()["trainer"] == {"ema_decay": 0.8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hybird", "did you mean 'hybrid'"),
        ("best", "known are all-fp"),
        ("all-ptq=a.B", "is a built-in name"),
        ("a b=a.B", "is a built-in name or no name"),
        ("mine=no-module", "after '=' comes the class"),
        ("mine=missing.yaml", "missing.yaml: No such file"),
        ("mine=list.yaml", "must hold class_path"),
        ("mine=more.yaml", "must hold class_path"),
        ("mine=number.yaml", "trainer must hold settings that contestants may differ in, such as ema_decay; not 3"),
        ("mine=seeded.yaml", "such as ema_decay; not monitor, seed"),
    ],
)
def test_unknown_ones(text, message):
    Path("list.yaml").write_text("[1]")
    Path("more.yaml").write_text("{class_path: a.B, seed: 3}")
    Path("number.yaml").write_text("{class_path: a.B, trainer: 3}")
    Path("seeded.yaml").write_text("{class_path: a.B, trainer: {seed: 3, monitor: val_loss, ema_decay: 0.8}}")
    with pytest.raises(ConfigurationError, match=message):
        contestant(text)


def test_none_and_twice():
    with pytest.raises(ConfigurationError, match="none given"):
        check_names([])
    with pytest.raises(ConfigurationError, match="all-ptq given twice"):
        check_names(["all-ptq", "hybrid", "all-ptq"])


def test_the_reference_of_random_ones():
    random, hybrid, coarse = map(contestant, ("random-tier", "hybrid", "coarse"))
    ptq = contestant("all-ptq")
    assert reference_of([random, coarse, hybrid], None) is hybrid
    assert reference_of([random, coarse, ptq], None) is coarse
    assert reference_of([random, coarse, ptq], "all-ptq") is ptq
    assert reference_of([ptq], None) is None
    with pytest.raises(ConfigurationError, match="neither hybrid nor coarse is among them; compared are all-ptq"):
        reference_of([random, ptq], None)
    with pytest.raises(ConfigurationError, match=r"reference 'coars' is not among them.*did you mean 'coarse'"):
        reference_of([random, coarse], "coars")


def test_the_grid_is_a_grid():
    names = [each.name for each in grid()]
    assert len(names) == len(set(names)) == 9
    assert "fixed:0:0" in names
