"""What goes to Weights & Biases, read back from the offline files of a real run."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from fedhq_lightning import tracking
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.report.allocation_figures import write_allocation_picture
from fedhq_lightning.tracking.loggers import labels_of
from fedhq_lightning.tracking.wandb_run import _wait_until_written, own_logger, rounds_held

from ..logged_run import SETTINGS, log_offline, write_logged_run
from ..small_federation import SmallData, SmallModule, trainer
from ..small_run import EXPLANATION, allotted_rounds, small_rounds, write_allocation
from .offline import Logged

ROUNDS = allotted_rounds(num_rounds=4)
BEST = {"max": max(record.metric_quantized for record in ROUNDS if record.metric_quantized is not None)}


def without_service() -> dict[str, str]:
    """The environment, but for what wandb keeps there for its own later runs of the process."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an allocator, named by a relative path as runs are by default."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("runs"))
    environment = without_service()
    try:
        folder = write_logged_run(Path("digits/20250101-120000-ab12"), ROUNDS)
        write_allocation(folder, num_rounds=4)
        (folder / "study.log").write_text("{}\n")
        assert write_allocation_picture(folder) is not None
        (folder / "summary.json").write_text(
            json.dumps(
                json.loads((folder / "summary.json").read_text())
                | {"per_class": {"classes": ["cat", "dog"], "examples": [3, 4], "fp": [0.5, 1.0], "quantized": [0, 1]}}
            )
        )
        log_offline(folder, ROUNDS, monitor="val_accuracy", monitor_mode="max")
        assert without_service() == environment
        return folder.absolute()
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def logged(run_dir: Path) -> Logged:
    return Logged(run_dir)


def test_a_run_is_called_as_the_user_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(folder: str) -> str:
        labels = labels_of(tmp_path / folder)
        return str(own_logger(tmp_path / folder, "digits", labels)._wandb_init["name"])

    monkeypatch.delenv("WANDB_NAME", raising=False)
    assert shown("20250101-120000-00ab12-first-try") == "first-try"
    assert shown("20250101-120000-00ab12") == "20250101-120000-00ab12"
    with tracking.labelled(name="hybrid, seed 0"):
        assert shown("20250101-120000-00ab12-first-try") == "hybrid, seed 0"
    monkeypatch.setenv("WANDB_NAME", "mine")
    assert shown("20250101-120000-00ab12-first-try") == "mine"


def test_artifacts_of_a_name_with_what_wandb_refuses_in_theirs(tmp_path: Path) -> None:
    rounds = small_rounds(num_rounds=1)
    run_dir = write_logged_run(tmp_path / "20250101-120000-00ab13-mu=0.5+lr", rounds)
    log_offline(run_dir, rounds)
    names = {each.type: each.name for each in Logged(run_dir).artifacts.values()}
    assert names["model"] == "model-20250101-120000-00ab13-mu-0.5-lr"
    assert names["recipe"] == "recipe-20250101-120000-00ab13-mu-0.5-lr"


def test_everything_is_drawn_over_rounds_and_the_metric_over_virtual_seconds_too(logged: Logged) -> None:
    assert logged.values["allocation/slack"] == ROUNDS[-1].allocation["slack"]
    assert logged.axes["*"].step_metric == "round"
    assert logged.axes["round"].options.hidden, "over itself, or over W&B's steps, it says nothing"
    for name in ("metric_quantized", "metric_fp"):
        again = f"{name}_by_virtual_seconds"
        assert (logged.axes[name].step_metric, logged.axes[again].step_metric) == ("round", "seconds/virtual")
        rows = [row for row in logged.rows if name in row]
        assert [row[again] for row in rows] == [row[name] for row in rows]
        assert all("seconds/virtual" in row for row in rows), "in the same row as its axis"
    assert "trainer/global_step" not in logged.values


def test_the_summary_has_the_best_round_and_the_deployed_model(logged: Logged, run_dir: Path) -> None:
    assert logged.axes["metric_quantized"].summary.max
    assert logged.summary["metric_quantized"] == BEST
    assert logged.summary["deployed/metric_quantized"] == ROUNDS[-1].metric_quantized
    assert logged.summary["mode_counts"]["qat"] > 0
    assert (
        logged.summary["worst_client"] == json.loads((run_dir / "summary.json").read_text())["worst_client"]["metric"]
    )
    assert logged.summary["allocation_explanation"] == EXPLANATION
    assert "tiers.0" not in logged.summary


def test_a_reader_sees_little_first_and_the_rest_in_groups(logged: Logged) -> None:
    first = {name for row in logged.rows for name in row if "seconds/virtual" in row and "/" not in name}
    assert {name for name in first if name[0] != "_"} == {
        "round",
        "metric_quantized",
        "metric_fp",
        "metric_quantized_by_virtual_seconds",
        "metric_fp_by_virtual_seconds",
        "qat_share",
        "round_bytes",
    }
    (row,) = (row for row in logged.rows if row.get("round") == ROUNDS[-1].round and "qat_share" in row)
    assert row["qat_share"] == row["clients/qat"] / sum(row[f"clients/{mode}"] for mode in ("fp", "ptq", "qat"))
    assert row["round_bytes"] == row["bytes/uplink"] + row["bytes/downlink"]


def test_the_summary_is_one_screen(logged: Logged) -> None:
    own = {name.removesuffix(".path").split(".")[0] for name in logged.summary if name[0] != "_"}
    nested = sum(
        len(value) - 1 for value in logged.summary.values() if isinstance(value, dict) and "_type" not in value
    )
    assert len(own) + nested <= 30
    assert {"clients", "tiers", "modes", "allocation_map"} <= own, "or W&B shows no panel of them"
    assert not [name for name in own if "/" in name and not name.startswith(("deployed/", "quantized/", "fp/"))]


def test_a_name_that_comes_later_is_kept_out_of_the_summary_too(tmp_path: Path) -> None:
    first, *others = small_rounds(num_rounds=2)
    rounds = [first, *(replace(each, metrics={**each.metrics, "train/late": 1.0}) for each in others)]
    run_dir = write_logged_run(tmp_path / "20250101-120000-ab16", rounds)
    log_offline(run_dir, rounds, monitor="val_accuracy", monitor_mode="max")
    logged = Logged(run_dir)
    assert logged.values["train/late"] == 1.0
    assert "train/late" not in logged.summary


def test_tables_and_pictures(logged: Logged, run_dir: Path) -> None:
    assert logged.file("allocation_map").read_text() == (run_dir / "allocation.svg").read_text()
    assert logged.file("modes").read_bytes().startswith(b"\x89PNG")
    clients, fits = logged.table("clients"), logged.table("client_rounds")
    assert len(fits) == sum(len(record.clients) for record in ROUNDS)
    assert {row["client_id"] for row in clients} == {row["client_id"] for row in fits}
    for row in clients:
        own = [fit for fit in fits if fit["client_id"] == row["client_id"]]
        assert row["rounds"] == len(own)
        assert row["qat"] == sum(fit["mode"] == "qat" for fit in own)
        assert row["uplink_bytes"] == sum(fit["uplink_bytes"] for fit in own)
    assert [row["mode"] for row in logged.table("allocation_clients")][:2] == ["qat", "ptq"]
    assert [row["trial"] for row in logged.table("allocation_boundaries")] == [0, 0, 1, 1]
    assert {row["tier"] for row in logged.table("tiers")} == {row["tier"] for row in clients}


def test_artifacts_have_aliases_and_lie_in_the_run_directory(logged: Logged, run_dir: Path) -> None:
    own = {each.type: each for each in logged.artifacts.values()}
    assert own.keys() == {"model", "recipe", "study", "run_table"}
    assert set(own["model"].aliases) == {"latest", "best", "round-4"}
    assert set(own["study"].aliases) == {"latest", "round-4"}
    metadata = json.loads(own["model"].metadata)
    assert metadata["metric_quantized"] == ROUNDS[-1].metric_quantized
    assert metadata["bytes"] == {"README.md": len("a model")}
    files = {entry.path for entry in own["study"].manifest.contents}
    assert files == {"allocation.json", "study.log", "allocation.svg"}
    # `wandb sync` may come later, from another folder, after a clean-up of the home.
    for artifact in logged.artifacts.values():
        for entry in artifact.manifest.contents:
            assert Path(entry.local_path).is_file()
            assert run_dir in Path(entry.local_path).parents
    assert not [file for file in Path.home().glob(".local/share/wandb/**/*") if file.is_file()]


def test_config_is_nested(logged: Logged) -> None:
    assert logged.config["trainer"] == SETTINGS["trainer"]
    assert (logged.config["recipe"], logged.config["monitor"], logged.config["monitor_mode"]) == (
        "digits",
        "val_accuracy",
        "max",
    )
    assert (logged.run.run_group, logged.run.display_name) == ("digits", "20250101-120000-ab12")


def test_the_best_is_of_the_rounds_that_were_trained(tmp_path: Path) -> None:
    first, *others = small_rounds(num_rounds=2)
    rounds = [replace(first, metric_quantized=1.0), *others]
    run_dir = write_logged_run(tmp_path / "20250101-120000-ab15", rounds)
    log_offline(run_dir, rounds, monitor="val_accuracy", monitor_mode="max")
    best = max(record.metric_quantized for record in others if record.metric_quantized is not None)
    assert Logged(run_dir).summary["metric_quantized"] == {"max": best}


@pytest.mark.usefixtures("quick")
def test_a_run_without_a_model_is_logged_without_it(tmp_path: Path) -> None:
    there = trainer(max_rounds=1, scheme="w4a8", logger=True)
    there.writes_model = False
    there.fit(SmallModule(), SmallData())
    logged = Logged(there.run_dir)
    assert {each.type for each in logged.artifacts.values()} == {"recipe", "run_table"}
    assert logged.summary["deployed/metric_quantized"] == there.summary["metric_quantized"]
    assert {row["client_id"] for row in logged.table("clients")} == {"0", "1", "2", "3"}
    assert "client_rounds.path" not in logged.values


@pytest.mark.parametrize("left", ["nothing", "another allocator's file"])
def test_other_allocators_log_no_map(tmp_path: Path, left: str) -> None:
    run_dir = write_logged_run(tmp_path / "20250101-120000-ab13", small_rounds(num_rounds=1))
    if left != "nothing":
        (run_dir / "allocation.json").write_text('{"mine": 1}')
    with tracking.labelled("compare-mine", "all-qat", "all-qat, seed 3", {"tune": {"trial": 7}}):
        log_offline(run_dir, small_rounds(num_rounds=1))
    logged = Logged(run_dir)
    assert not [name for name in (*logged.values, *logged.summary) if name.startswith("allocation")]
    studies = [
        {entry.path for entry in each.manifest.contents} for each in logged.artifacts.values() if each.type == "study"
    ]
    assert studies == ([] if left == "nothing" else [{"allocation.json"}])
    labels = (logged.run.run_group, logged.run.job_type, logged.run.display_name)
    assert labels == ("compare-mine", "all-qat", "all-qat, seed 3")
    assert logged.config["tune"] == {"trial": 7}


class TestTheUsersOwn:
    def test_a_run_that_the_user_opened_goes_on(self, tmp_path: Path) -> None:
        run_dir = write_logged_run(tmp_path / "20250101-120000-ab14", small_rounds(num_rounds=1))
        logger = WandbLogger(project="mine", save_dir=tmp_path / "own", offline=True, prefix="fed")
        log = tracking.make_loggers([logger], run_dir, "digits", SETTINGS)
        tracking.log_round(log, small_rounds(num_rounds=1)[-1])
        tracking.finish(log, {"rounds": 1, "metric_name": "val_accuracy"}, run_dir)
        try:
            assert wandb.run is logger.experiment
            logger.experiment.log({"mine": 1})
        finally:
            file = Path(logger.experiment.settings.sync_file)
            wandb.finish()
        _wait_until_written(file, 30.0)
        logged = Logged(tmp_path / "own")
        assert logged.values["mine"] == 1
        assert logged.values["fed-round"] == 1
        assert logged.axes["fed-metric_fp_by_virtual_seconds"].step_metric == "fed-seconds/virtual"

    def test_two_loggers_are_two_runs_and_both_go_on(self, tmp_path: Path) -> None:
        run_dirs = [write_logged_run(tmp_path / name, small_rounds(num_rounds=1)) for name in ("one", "two")]
        loggers = [WandbLogger(project="mine", name=each.name, save_dir=tmp_path, offline=True) for each in run_dirs]
        runs = []
        try:
            for logger, run_dir in zip(loggers, run_dirs, strict=True):  # a loop over folds
                log = tracking.make_loggers(logger, run_dir, "digits", SETTINGS)
                tracking.log_round(log, small_rounds(num_rounds=1)[-1])
                tracking.finish(log, {"rounds": 1, "metric_name": "val_accuracy"}, run_dir)
                assert wandb.run is logger.experiment
                runs.append(logger.experiment)
            assert [run.name for run in runs] == ["one", "two"]
            loggers[0].log_metrics({"later": 1.0})
            assert [run.summary.get("later") for run in runs] == [1.0, None]
            assert [run.summary.get("round") for run in runs] == [1, 1]
            log = tracking.make_loggers(True, run_dirs[0], "digits", SETTINGS)
            assert log[0].logger.version == "one"
            tracking.finish(log, {}, run_dirs[0], "failed")
            assert not any(run._is_finished for run in runs)
        finally:
            for run in runs:
                run.finish()

    def test_another_run_is_joined_and_lightning_says_so(self, tmp_path: Path) -> None:
        run = wandb.init(project="mine", dir=tmp_path, mode="offline")
        logger, environment = WandbLogger(project="mine", save_dir=tmp_path, offline=True), without_service()
        try:
            for each in (logger, True):
                with pytest.warns(UserWarning, match="There is a wandb run already in progress"):
                    [log] = tracking.make_loggers(each, tmp_path, "digits", SETTINGS)
                assert log.logger.experiment is run
                tracking.finish([log], {}, tmp_path, "failed")
                assert not run._is_finished
                assert without_service() == environment
        finally:
            run.finish()

    def test_what_wandb_says_of_the_users_runs_is_seen(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        wandb.teardown()  # as in a new process
        run_dir = write_logged_run(tmp_path / "20250101-120000-ab16", small_rounds(num_rounds=1))
        log_offline(run_dir, small_rounds(num_rounds=1))
        assert capfd.readouterr() == ("", ""), "ours is silent"
        environment = without_service()
        logger = WandbLogger(project="mine", save_dir=tmp_path, offline=True)
        log = tracking.make_loggers(logger, run_dir, "digits", SETTINGS)
        tracking.finish(log, {}, run_dir, "failed")
        logger.experiment.finish()
        wandb.init(project="mine", dir=tmp_path, mode="offline").finish()
        said = capfd.readouterr().err
        assert said.count("Tracking run with wandb") == 2
        assert "environment variables" not in said
        assert without_service() == environment

    def test_a_finished_run_takes_no_other(self, tmp_path: Path) -> None:
        logger = WandbLogger(project="mine", save_dir=tmp_path, offline=True, id="done")
        logger.experiment.finish()
        with pytest.raises(ConfigurationError, match=r"run done is finished .* make a new WandbLogger"):
            tracking.check_logger(logger)

    def test_a_live_run_tells_what_it_holds(self, tmp_path: Path) -> None:
        def resumed(last: Any) -> Any:
            run = SimpleNamespace(
                summary={} if last is None else {"round": last}, settings=SimpleNamespace(_offline=False)
            )
            return SimpleNamespace(experiment=run, _prefix="")

        assert rounds_held(resumed(2)) == {0, 1, 2}
        assert rounds_held(resumed(None)) == set()

    def test_online_without_a_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WANDB_MODE")
        with pytest.raises(ConfigurationError, match=r"the WandbLogger is online, but no API key.*offline=True"):
            tracking.check_logger([WandbLogger(project="mine")])
        tracking.check_logger(WandbLogger(project="mine", offline=True))

    def test_a_mode_that_there_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "ofline")
        with pytest.raises(ConfigurationError, match=r"WANDB_MODE 'ofline': must be .*; did you mean 'offline'"):
            tracking.check_logger(True)
