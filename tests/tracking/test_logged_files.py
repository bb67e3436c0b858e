"""MLflow in a store of files and TensorBoard's own files, as those read them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger

from fedhq_lightning import tracking
from fedhq_lightning.run.logged_rows import logged_values

from ..logged_run import SETTINGS, write_logged_run
from ..small_run import small_rounds, small_summary, write_allocation

ROUNDS = small_rounds(num_rounds=4)
FILES = {"recipe.yaml", "summary.json", "modes.png", "model"}


def logged(run_dir: Path, logger: Logger, status: str = "success") -> None:
    """Log a small run with one logger, as the trainer does; nothing of it may fail."""
    write_allocation(write_logged_run(run_dir, ROUNDS))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* failed, and the run goes on")
        loggers = tracking.make_loggers([logger], run_dir, "digits", SETTINGS)
        for record in ROUNDS:
            tracking.log_round(loggers, record)
        tracking.finish(loggers, small_summary(ROUNDS), run_dir, status)


def expected(name: str) -> Sequence[tuple[int, Any]]:
    rows = [(record.round, logged_values(record)) for record in ROUNDS]
    return [(number, pytest.approx(values[name])) for number, values in rows if name in values]


class TestMlflow:
    @pytest.fixture
    def logger(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MLFlowLogger:
        pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer ones advise against it
        return MLFlowLogger("mine", tracking_uri=f"file:{tmp_path / 'mlruns'}")

    @pytest.mark.filterwarnings("ignore")  # MLflow's own
    def test_numbers_files_and_the_deployed_model(self, tmp_path: Path, logger: MLFlowLogger) -> None:
        logged(tmp_path / "run", logger)
        client, run_id = logger.experiment, str(logger.run_id)
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["trainer/scheme"] == "w4a8"
        for name in logged_values(ROUNDS[-1]):
            assert [(each.step, each.value) for each in client.get_metric_history(run_id, name)] == expected(name), name
        assert {each.path for each in client.list_artifacts(run_id)} == FILES
        assert [each.path for each in client.list_artifacts(run_id, "model")] == ["model/README.md"]
        downloaded = client.download_artifacts(run_id, "model/README.md", str(tmp_path))
        assert Path(downloaded).read_text() == "a model"

    @pytest.mark.filterwarnings("ignore")  # MLflow's own
    def test_a_run_that_failed_has_its_numbers_alone(self, tmp_path: Path, logger: MLFlowLogger) -> None:
        logged(tmp_path / "run", logger, "failed")
        assert logger.experiment.get_run(str(logger.run_id)).info.status == "FAILED"
        assert logger.experiment.list_artifacts(str(logger.run_id)) == []


def test_tensorboard_has_numbers_and_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path / "logs", "mine", "one")
    logged(tmp_path / "run", logger)
    found = EventAccumulator(logger.log_dir)
    found.Reload()
    for name in logged_values(ROUNDS[-1]):
        assert [(event.step, event.value) for event in found.Scalars(name)] == expected(name), name
    [picture] = found.Images("modes")
    assert picture.step == ROUNDS[-1].round
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    assert min(picture.width, picture.height) > 100


def test_csv_takes_numbers_alone(tmp_path: Path) -> None:
    logged(tmp_path / "run", CSVLogger(tmp_path / "logs", "mine", "one"))
    written = np.genfromtxt(tmp_path / "logs" / "mine" / "one" / "metrics.csv", delimiter=",", names=True)
    assert written["step"].tolist() == [record.round for record in ROUNDS]
    assert {path.name for path in (tmp_path / "logs" / "mine" / "one").iterdir()} == {"metrics.csv", "hparams.yaml"}
