"""The run directory and its checkpoints."""

import csv
import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.checkpoint_file import load_checkpoint
from fedhq_lightning.run.directory import RunDirectory

from ..small_run import small_rounds

ROUNDS = small_rounds(4)


def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, "recipe")


def test_every_run_gets_its_own_folder(tmp_path: Path) -> None:
    paths = {directory(tmp_path).path for _ in range(5)}
    assert len(paths) == 5
    assert all(path.parent == tmp_path / "recipe" and (path / "checkpoints").is_dir() for path in paths)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be written \(.*set trainer.default_root_dir"):
        RunDirectory.create(blocked, "recipe")


def test_rounds_come_back(tmp_path: Path) -> None:
    run = directory(tmp_path)
    assert run.read_rounds() == []
    for record in ROUNDS:
        run.append_round(record)
    assert run.read_rounds() == ROUNDS
    assert len(run.rounds_file.read_text().splitlines()) == 5


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_line_that_a_kill_cut_off_is_forgotten(tmp_path: Path, cut: int) -> None:
    run = directory(tmp_path)
    for record in ROUNDS[:3]:
        run.append_round(record)
    line = json.dumps(ROUNDS[3].to_json())
    with run.rounds_file.open("a") as file:
        file.write(line[:cut])
    assert run.read_rounds() == ROUNDS[:3]
    run.rewind(2)
    run.append_round(ROUNDS[3])
    assert run.read_rounds() == ROUNDS[:4]


def test_rewind_forgets_later_rounds(tmp_path: Path) -> None:
    run = directory(tmp_path)
    for record in ROUNDS:
        run.append_round(record)
    assert run.rounds_until(2) == [replace(record, clients=()) for record in ROUNDS[:3]]
    run.rewind(2)
    assert run.read_rounds() == ROUNDS[:3]


@pytest.mark.parametrize("held", [[], [0, 1], [0, 1, 3], [1, 2, 3], [0, 1, 1, 2, 3], [0, 1, 2, 2]])
def test_rounds_that_are_not_all_there(tmp_path: Path, held: list[int]) -> None:
    run = directory(tmp_path)
    for number in held:
        run.append_round(ROUNDS[number])
    if held == [0, 1, 2, 2]:  # what comes after the checkpoint does not matter
        assert len(run.rounds_until(2)) == 3
        return
    with pytest.raises(ConfigurationError, match=r"rounds\.jsonl: does not hold rounds 0 to 2"):
        run.rounds_until(2)


def test_rounds_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, synced = directory(tmp_path), []
    monkeypatch.setattr(os, "fsync", synced.append)
    run.append_round(ROUNDS[0])
    assert len(synced) == 2, "the line, and the new file's name"
    run.append_round(ROUNDS[1])
    assert len(synced) == 3


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = directory(tmp_path)
    run.recipe.touch()
    refused = pytest.raises(ConfigurationError, match="going on in another process")
    with run.locked(), refused, RunDirectory(run.path).locked():
        pass
    with RunDirectory(run.path).locked():
        pass


def test_a_folder_without_a_round_can_go(tmp_path: Path) -> None:
    run = directory(tmp_path)
    run.append_round(ROUNDS[0])
    run.remove_if_without_rounds()
    assert run.rounds_file.exists()
    run.rounds_file.unlink()
    run.remove_if_without_rounds()
    assert not run.path.exists()


def test_a_folder_that_is_gone_or_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = directory(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for write in (lambda: run.append_round(ROUNDS[0]), lambda: run.save_best({}), lambda: run.write_metrics([])):
            with pytest.raises(ConfigurationError, match=r"cannot be written \(No space left on device\)"):
                write()
    shutil.rmtree(run.path)
    for write in (lambda: run.append_round(ROUNDS[0]), lambda: run.save_best({}), lambda: run.write_metrics([])):
        with pytest.raises(ConfigurationError, match=r"cannot be written \(No such file or directory\)"):
            write()


def test_keeps_the_newest_checkpoints_and_the_best(tmp_path: Path) -> None:
    run = directory(tmp_path)
    run.save_best({"round": 0})
    for number in (1, 2, 9, 10, 11):
        run.save_checkpoint(number, {"round": number, "w": torch.tensor([float(number)])}, keep=2)
    assert sorted(os.listdir(run.checkpoints)) == ["best.ckpt", "round-000010.ckpt", "round-000011.ckpt"]
    assert RunDirectory.of_checkpoint(run.path)[1].name == "round-000011.ckpt"
    assert load_checkpoint(run.saved_checkpoints()[0])["w"].tolist() == [10.0]


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    run = directory(tmp_path)
    for number in (9, 1_000_000, 10):
        run.save_checkpoint(number, {}, keep=5)
    (run.checkpoints / "round-x.ckpt").write_text("")
    assert [path.name for path in run.saved_checkpoints()][-1] == "round-1000000.ckpt"


def test_a_checkpoint_file_names_its_run(tmp_path: Path) -> None:
    run = directory(tmp_path)
    run.save_checkpoint(3, {}, keep=2)
    run.recipe.touch()
    file = run.checkpoints / "round-000003.ckpt"
    found, path = RunDirectory.of_checkpoint(file)
    assert (found.path, path) == (run.path, file)


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    run = directory(tmp_path)
    with pytest.raises(ConfigurationError, match=rf"it was stopped before it had begun; remove it: rm -r {run.path}$"):
        RunDirectory.of_checkpoint(run.path)
    run.rounds_file.touch()
    with pytest.raises(ConfigurationError, match=r"no recipe\.yaml there; give the directory of a run"):
        RunDirectory.of_checkpoint(run.path)
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        RunDirectory.of_checkpoint(tmp_path / "nowhere")


def test_a_run_before_its_first_checkpoint(tmp_path: Path) -> None:
    run = directory(tmp_path)
    run.recipe.touch()
    found, path = RunDirectory.of_checkpoint(run.path)
    assert (found.path, path) == (run.path, None)


def test_what_killed_processes_left_goes_with_the_rounds_that_are_forgotten(tmp_path: Path) -> None:
    run = directory(tmp_path)
    kept = [
        run.path / ".hidden",
        run.path / ".notes.txt",
        run.checkpoints / ".x.ckpt.UPPERCAS",
        run.path / "a.b12345678",
    ]
    left = [run.path / ".metrics.csv.ab_12xyz", run.checkpoints / ".round-000002.ckpt.00000000"]
    for path in (*kept, *left):
        path.touch()
    for record in ROUNDS[:2]:
        run.append_round(record)
        run.save_checkpoint(record.round, {}, keep=2)
    run.rewind(0)
    assert [path for path in (*kept, *left) if path.exists()] == kept
    assert run.read_rounds() == ROUNDS[:1]
    assert [path.name for path in run.saved_checkpoints()] == ["round-000000.ckpt"]
    for number in (0, 1, 2):
        run.save_checkpoint(number, {}, keep=5)
    run.rewind(0)
    assert len(run.saved_checkpoints()) == 1
    for number in (1, 2):
        run.save_checkpoint(number, {}, keep=5)
    run.rewind(2)
    assert [path.name for path in run.saved_checkpoints()] == ["round-000001.ckpt", "round-000002.ckpt"]
    run.rewind(-1)
    assert run.read_rounds() == run.saved_checkpoints() == []
    run.append_round(ROUNDS[0])


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = directory(tmp_path)
    run.save_checkpoint(1, {"round": 1}, keep=2)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(1, {"round": 99}, keep=2)
    monkeypatch.undo()
    assert load_checkpoint(RunDirectory.of_checkpoint(run.path)[1]) == {"round": 1}
    assert os.listdir(run.checkpoints) == ["round-000001.ckpt"]


def test_metrics_csv_has_one_row_a_round(tmp_path: Path) -> None:
    run = directory(tmp_path)
    run.write_metrics(ROUNDS)
    rows = list(csv.DictReader((run.path / "metrics.csv").read_text().splitlines()))
    assert [int(row["round"]) for row in rows] == [0, 1, 2, 3, 4]
    assert float(rows[2]["quantized/val_accuracy"]) == ROUNDS[2].metrics["quantized/val_accuracy"]
    assert rows[1]["metric_fp"] == ""
    assert rows[3]["clients/qat"] == str(ROUNDS[3].mode_counts["qat"])
    assert "clients" not in rows[0]


def test_clients_parquet_has_one_row_per_client_and_round(tmp_path: Path) -> None:
    run = directory(tmp_path)
    for record in ROUNDS:
        run.append_round(record)
    run.write_clients()
    rows = pyarrow.parquet.read_table(run.path / "clients.parquet").to_pylist()
    clients = [client for record in ROUNDS for client in record.clients]
    assert len(rows) == len(clients)
    for row, client in zip(rows, clients, strict=True):
        assert (row["round"], row["client_id"], row["status"]) == (client.round, str(client.client_id), client.status)
        assert row["virtual_seconds"] == client.virtual_seconds
        assert row["metrics/train_loss"] == client.metrics["train_loss"]


def test_clients_parquet_without_clients(tmp_path: Path) -> None:
    run = directory(tmp_path)
    run.append_round(ROUNDS[0])
    run.write_clients()
    assert pyarrow.parquet.read_table(run.path / "clients.parquet").num_rows == 0
