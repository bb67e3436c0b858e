import dataclasses
import os
import sqlite3
from pathlib import Path

import optuna
import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.objectives import Objective
from fedhq_lightning.experiments.study_storage import STUDY_NAME, default_place, join, load
from fedhq_lightning.quantize.lane_options import LaneOptions

OBJECTIVES = (Objective("metric_fp", "max"),)
DESIGN = {"recipe": {"name": "mine", "model": {"lr": 0.1}}, "search": {"model.lr": [0.1, 0.2]}, "seed": 0}


def open_study(storage, design=DESIGN, root=Path("runs")):
    return join(default_place(root, "mine", storage), design, OBJECTIVES)


@pytest.mark.parametrize("storage", ["study.log", "folder", "deep/er/study.log", "sqlite:///study.db"])
def test_whoever_comes_second_joins(storage):
    Path("folder").mkdir()
    first, place = open_study(storage)
    assert place.folder.is_dir()
    first.add_trial(optuna.trial.create_trial(value=0.5))
    second, again = open_study(storage)
    assert again == place
    assert [trial.value for trial in second.trials] == [0.5]
    assert second.direction.name == "MAXIMIZE"


def test_by_default_in_a_folder_of_its_own():
    _, place = open_study(None)
    assert place.folder.parent == Path("runs/mine").absolute()
    assert Path(place.storage).absolute() == place.folder / "study.log"
    moved = place.folder.rename("moved")
    _, again = open_study("moved")
    assert again.folder == moved.absolute()


def test_nothing_is_written_where_a_storage_of_somebody_says(tmp_path):
    study, place = open_study("other.log")
    assert place.folder.name.startswith("tune-")
    for folder in (str(tmp_path), "x" * 5000, "a\0b"):
        study.set_user_attr("folder", folder)
        again = open_study("other.log")[1].folder
        assert again.name.startswith("tune-")
        assert again.parent == place.folder.parent


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": {"name": "mine", "model": {"lr": 0.3}}}, "another recipe: recipe.model.lr was 0.1, is now 0.3"),
        ({"search": {"model.lr": [0.1]}}, r"another search: search.model.lr was \[0.1, 0.2\], is now \[0.1\]"),
        ({"seed": 1}, "another seed: seed was 0, is now 1"),
    ],
)
def test_another_study_is_refused(change, words):
    open_study("study.log")
    with pytest.raises(ConfigurationError, match=f"^storage study.log: its study is of {words}.*another --storage$"):
        open_study("study.log", DESIGN | change)


def test_a_study_from_before_recipes_said_the_lanes_options_goes_on_with_what_they_were():
    def design(lanes):
        return DESIGN | {"recipe": {"name": "mine", "trainer": {"lanes": lanes}}}

    said = dataclasses.asdict(LaneOptions(qat_backward="bf16"))
    open_study("study.log", design(None))
    open_study("study.log", design(said))
    with pytest.raises(ConfigurationError, match=r"recipe.trainer.lanes.qat_backward was 'bf16', is now 'int8'; go on"):
        open_study("study.log", design(said | {"qat_backward": "int8"}))


def test_what_others_wrote_is_refused(monkeypatch):
    Path("text.log").write_text("hello\n")
    with pytest.raises(ConfigurationError, match=r"^storage text.log: cannot be used: JSONDecodeError.*sqlite:///FILE"):
        open_study("text.log")
    backend = optuna.storages.journal.JournalFileBackend("other.log")
    optuna.create_study(study_name="fedhq", storage=optuna.storages.JournalStorage(backend))
    with pytest.raises(ConfigurationError, match="holds the study 'fedhq', which is not of fedhq tune"):
        open_study("other.log")
    monkeypatch.setattr("fedhq_lightning.experiments.study_storage._SECONDS_TO_WAIT", 0)
    optuna.create_study(study_name=STUDY_NAME, storage="sqlite:///unknown.db")
    with pytest.raises(ConfigurationError, match="does not say of which recipe it is"):
        open_study("sqlite:///unknown.db")


def test_passwords_are_not_shown():
    with pytest.raises(ConfigurationError) as raised:
        open_study("nosuch://user:secret@localhost/base")
    assert "nosuch://user:***@localhost/base" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_locked_database_is_refused():
    open_study("sqlite:///study.db")
    with sqlite3.connect("study.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigurationError, match=r"^storage sqlite:///study.db\?timeout=0.1: .*database is locked"):
            open_study("sqlite:///study.db?timeout=0.1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission():
    open_study("study.log")
    Path("study.log").chmod(0o444)
    with pytest.raises(ConfigurationError, match="no permission to write it"):
        open_study("study.log")


def test_a_line_that_a_killed_worker_left_half_is_cut_off():
    study, place = open_study("study.log")
    study.add_trial(optuna.trial.create_trial(value=0.5))
    whole = Path("study.log").read_bytes()
    Path("study.log").write_bytes(whole + whole.splitlines()[-1][:20])
    again = load(place)
    again.add_trial(optuna.trial.create_trial(value=0.7))
    assert [trial.value for trial in load(place).trials] == [0.5, 0.7]


def test_a_lock_that_a_killed_worker_left_is_broken(monkeypatch):
    monkeypatch.setattr("fedhq_lightning.experiments.study_storage._GRACE_SECONDS", 3)
    Path("folder").mkdir()
    open_study("folder")
    Path("folder/study.log.lock").touch()
    study, _ = open_study("folder")
    study.add_trial(optuna.trial.create_trial(value=0.5))
    assert not Path("folder/study.log.lock").exists()


def test_a_root_that_cannot_be_written_is_named_by_its_setting(tmp_path):
    (tmp_path / "file").write_text("no folder")
    place = default_place(tmp_path / "file", "mine", None)
    with pytest.raises(ConfigurationError, match=r"set trainer\.default_root_dir to a folder"):
        join(place, {}, OBJECTIVES)
