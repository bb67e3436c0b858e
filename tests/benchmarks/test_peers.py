"""The benchmark beside other frameworks: what contestants print is read, compared and told."""

import dataclasses
import json
import subprocess
import sys
import time

import peers
import peers_contestants
import peers_runs
import pytest
import results

TINY = dataclasses.replace(peers_runs.QUICK["B"], clients=3, examples=7, cohort=2, batch_size=4)


def line(**values):
    return json.dumps({"rank": 0, **values})


def printed(steps=(5, 5, 5)):
    rounds = [line(event="round", seconds=2.0 + index, steps=count) for index, count in enumerate(steps)]
    return "\n".join(["noise", "bar: " + line(event="begin", time=110.5, parameters=42), *rounds, "{'rank': 0}"])


def test_a_run_is_read():
    found = peers_runs.parsed(printed(), started=100.0, rounds=2)
    assert found == {"startup_seconds": 10.5, "seconds": [3.0, 4.0], "steps": [5, 5, 5], "parameters": 42}


def test_steps_of_all_processes_are_added_up_and_the_first_one_tells_the_time():
    other = [json.dumps({"rank": 1, "event": "round", "seconds": 9.0, "steps": 3}) for _ in range(3)]
    told = [line(event="value", fp=0.5)]
    found = peers_runs.parsed("\n".join([*other, printed(), *told]), 100.0, 2)
    assert found["steps"] == [8, 8, 8]
    assert found["seconds"] == [3.0, 4.0]
    assert found["fp"] == 0.5


@pytest.mark.parametrize("output", ["", printed((5, 5)), printed().replace("begin", "value")])
def test_a_run_that_reports_too_little_failed(output):
    with pytest.raises(peers_runs.NotRunError, match="rounds were reported"):
        peers_runs.parsed(output, 100.0, 2)


def test_a_reason_is_the_telling_line_without_places():
    errors = "Traceback\n  File x\nray.exceptions.RayError: no | room in /home/me/x (https://host/a)\nbye\n"
    assert peers_runs.reason(errors) == "ray.exceptions.RayError: no / room in ... (...)"
    assert peers_runs.reason("") == "no message"


def test_versions_are_those_of_the_repository():
    assert peers_runs.pinned("torch").startswith("2.")


def test_memory_of_a_process_and_its_children_is_watched_and_nothing_is_left():
    child = "import time; held = bytearray(50_000_000); time.sleep(60)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(1.5)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    while len(below := peers_runs.processes_below(parent.pid)) < 2:
        time.sleep(0.01)
    assert peers_runs.watch(parent) > 50_000_000
    (left,) = below.keys() - {parent.pid}
    deadline = time.time() + 10
    while peers_runs.proportional_bytes(left) and time.time() < deadline:
        time.sleep(0.01)
    assert not peers_runs.proportional_bytes(left)


def test_the_shapes_are_those_of_the_peers():
    sizes = {name: shape.steps for name, shape in peers_runs.SHAPES.items()}
    assert sizes == {"A": 250, "B": 1000}
    models = [peers_runs.model_of(shape) for shape in peers_runs.SHAPES.values()]
    parameters = [sum(each.numel() for each in model.parameters()) for model in models]
    assert parameters == [1_626_442, 62_006]


def test_the_bare_loop_takes_the_steps_of_its_shape(tmp_path, capsys):
    peers_contestants.bare(peers_contestants.Job(TINY, 1, tmp_path, tmp_path), peers_contestants.Report())
    found = peers_runs.parsed(capsys.readouterr().out, time.time(), TINY.rounds)
    assert found["steps"] == [TINY.steps] * 2 == [4, 4]
    assert all(seconds > 0 for seconds in found["seconds"])


def test_a_loader_gives_whole_shuffled_batches(tmp_path):
    images, labels = peers_runs.clients_of(TINY, tmp_path / "other")[1]
    batches = list(peers_runs.loader_of(TINY, images, labels))
    assert [len(each[1]) for each in batches] == [4, 3]
    assert sorted(label for each in batches for label in each[1].tolist()) == sorted(labels.tolist())


def made(contestant, repeat, seconds, processes=1, **more):
    cell = {"shape": "B", "contestant": contestant, "processes": processes, "repeat": repeat}
    run = {"startup_seconds": 1.0, "seconds": seconds, "steps": [8, 8], "parameters": 62006, "peak_bytes": 3e8}
    return {**cell, **run, **more}


ABOUT = {
    "machine": "- processor: one",
    "versions": {"bare": "2", "pfl": "0.6.0", "ours": "1"},
    "scheme": "w8a8",
    "settings": {"B": dataclasses.asdict(peers_runs.QUICK["B"])},
}


def test_the_page():
    bare = [made("bare", repeat, [1.0 + repeat]) for repeat in range(3)]
    ours = [made("ours-fp", repeat, [2.0, 4.0, 9.0]) for repeat in range(3)]
    failed = {"shape": "B", "contestant": "pfl", "processes": 1, "repeat": None, "failed": "not installed: no wheel"}
    text = peers.page([ABOUT, *bare, *ours, failed])
    assert "| bare PyTorch loop | 0.500 | 2.00 [1.00, 3.00] | 1.00 [1.00, 1.00] | 1.0 | 300 | 3 |" in text
    assert "| ours, fp | 0.250 | 4.00 [4.00, 4.00] | 0.50 [0.25, 0.75] | 1.0 | 300 | 3 |" in text
    assert "| pfl-research 0.6.0 | did not run: not installed: no wheel |" in text
    assert "Not measured here: it takes CIFAR-10" in text


def test_accuracy_on_real_images():
    pairs = [("ours-fp", 0.60, 0.59), ("ours-ptq", 0.61, 0.596)]
    cells = [{"shape": "CIFAR-10", "contestant": name, "seed": 3, "fp": fp, "quantized": q} for name, fp, q in pairs]
    text = peers.page([ABOUT, made("bare", 0, [1.0]), *cells])
    assert "| 3 | 60.00 | 59.60 | -0.40 |" in text
    assert "-0.40 points (met)" in text


def test_work_that_differs_is_refused():
    good = made("bare", 0, [1.0])
    peers.check([ABOUT, good, made("pfl", 0, [1.0])])
    with pytest.raises(SystemExit, match=r"pfl took \[8, 7\] local steps, not 8"):
        peers.check([ABOUT, good, made("pfl", 0, [1.0], steps=[8, 7])])
    with pytest.raises(SystemExit, match="models of different sizes"):
        peers.check([ABOUT, good, made("pfl", 0, [1.0], parameters=1)])


def test_cells_are_kept_and_not_mixed_with_others(tmp_path):
    found = peers.Cells(tmp_path / "cells.jsonl")
    found.begin(ABOUT)
    found.add(made("bare", 0, [1.0]))
    again = peers.Cells(tmp_path / "cells.jsonl")
    again.begin(ABOUT)
    assert again.lines == found.lines
    assert again.has(contestant="bare", repeat=0)
    assert not again.has(contestant="bare", repeat=1)
    with pytest.raises(SystemExit, match="another value of 'machine'"):
        again.begin({**ABOUT, "machine": "another"})


def test_a_contestant_that_fails_is_told_and_the_others_run(monkeypatch, tmp_path):
    def environment(name, folder):
        if name == "pfl":
            raise peers_runs.NotRunError("not installed: no wheel")
        return folder / name

    def run(python, contestant, shape, processes, data, more=()):
        if contestant == "flower" and shape.rounds == 1 and processes == 2:
            raise peers_runs.NotRunError("no room")
        cell = made(contestant, 0, [1.0], steps=[shape.steps] * 2)
        return {key: cell[key] for key in ("startup_seconds", "seconds", "steps", "parameters", "peak_bytes")}

    monkeypatch.setattr(peers.runs, "make_environment", environment)
    monkeypatch.setattr(peers.runs, "run", run)
    monkeypatch.setattr(peers, "about", lambda *_: ABOUT)
    found = peers.Cells(None)
    peers.measure(found, tmp_path, {"B": peers_runs.QUICK["B"]}, 2, ["bare", "pfl", "flower"])
    ran = [(each["contestant"], each["processes"]) for each in found.lines[1:] if "seconds" in each]
    assert {each: ran.count(each) for each in ran} == {("bare", 1): 2, ("bare", 2): 2, ("flower", 1): 2}
    failed = [(each["contestant"], each["processes"], each["failed"]) for each in found.lines[1:] if "failed" in each]
    assert failed == [
        ("pfl", 1, "not installed: no wheel"),
        ("pfl", 2, "not installed: no wheel"),
        ("flower", 2, "no room"),
    ]


@pytest.mark.skipif(not peers.KEPT.exists(), reason="nothing is measured yet")
def test_the_page_in_the_documentation_is_that_of_the_cells():
    lines = peers.Cells(peers.KEPT).lines
    peers.check(lines)
    written = (results.PAGES / "peers.md").read_text(encoding="utf-8")
    assert results.replace_section(written, "peers", peers.page(lines)) == written
