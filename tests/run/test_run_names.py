"""What runs are called, and which run a name means."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.run_names import RunName, check_name, given_name, new_folder_name, run_called, run_meant


def make(name: str, recipe: str = "digits") -> Path:
    path = Path("runs", recipe, name)
    path.mkdir(parents=True)
    return path


def test_a_folders_name_and_back() -> None:
    parts = RunName.of(new_folder_name("first-try"))
    assert parts is not None
    assert (parts.name, parts.shown, len(parts.id)) == ("first-try", "first-try", 6)
    plain = RunName.of(new_folder_name())
    assert plain is not None
    assert (plain.name, plain.shown) == ("", plain.id)
    assert RunName.of(f"{plain.unique}-second-try") == replace(plain, name="second-try")
    assert RunName.of("checkpoints") is None
    assert given_name(Path("runs/digits/20250101-120000-0a1b2c-x.y")) == "x.y"
    assert given_name(Path("runs/digits")) == ""


@pytest.mark.parametrize("name", ["a", "lr=0.1", "FedProx_2+w4a8", "x" * 64])
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "a b", "../up", "-x", ".hidden", "a/b", "last", "best", "x" * 65, "ä", "a\n"])
def test_no_names(name: str) -> None:
    with pytest.raises(ConfigurationError, match="give up to 64 letters"):
        check_name(name)


def test_a_run_by_its_name_its_id_or_its_folders_name() -> None:
    one, other = make("20250101-120000-0a1b2c-first"), make("20250102-120000-0a1b2d", "mnist")
    assert run_called(Path("first")) == one
    assert run_called(Path("0a1b2d")) == other
    assert run_called(Path(one.name)) == one
    assert run_meant("0a1b2d") == str(other)


def test_paths_and_what_nobody_is_called_stay() -> None:
    one = make("20250101-120000-0a1b2c-first")
    assert run_called(one) == one
    assert run_called(Path("second")) == Path("second")
    assert run_called(Path("elsewhere/first")) == Path("elsewhere/first")
    Path("first").mkdir()
    assert run_called(Path("first")) == Path("first"), "what is there wins"
    assert run_meant("wandb://entity//first") == "wandb://entity//first"
    assert run_meant("") == ""


def test_runs_elsewhere_are_named_below_their_folder() -> None:
    folder = Path("results/digits/20250101-120000-0a1b2c-first")
    folder.mkdir(parents=True)
    make("20250102-120000-0a1b2d-first")
    assert run_called(Path("results/first")) == run_called(Path("results/0a1b2c")) == folder
    assert run_called(Path("results/digits/first")) == folder
    assert run_called(Path("results").absolute() / "first") == folder.absolute()
    assert run_meant("results/first") == str(folder)
    for other in ("results/second", "nowhere/first", "team/project/0a1b2c"):
        assert run_called(Path(other)) == Path(other)


def test_several_of_one_name_are_listed() -> None:
    for day in range(1, 6):
        make(f"2025010{day}-120000-0a1b2{day}-first")
    with pytest.raises(
        ConfigurationError, match=r"5 runs are called 'first': runs/digits/20250105-.* and 2 more; give"
    ):
        run_called(Path("first"))
