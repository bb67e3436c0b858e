"""Rounds per second beside a bare PyTorch loop, pfl-research, Flower and BlazeFL, on this host.

    python benchmarks/peers.py                                 # two hours; writes docs/results/peers.md
    python benchmarks/peers.py --quick                         # minutes: every contestant once, tiny; writes nothing
    python benchmarks/peers.py --cifar10 /data/cifar10         # and what PTQ costs in accuracy; half an hour more
    python benchmarks/peers.py --fresh                         # measures anew what is kept

Needs Python 3.11 and pip, nothing else: every contestant gets a virtual environment of its own in `--environments`,
which stays there. Runs are kept in benchmarks/cells/peers.jsonl as they end and are not repeated, failed ones neither:
remove their lines to have them run again, or forget all with `--fresh`. The settings are in `peers_runs.py`; they were
fixed before the first real run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import peers_runs as runs
import results
from peers_runs import CONTESTANTS, PROCESSES, ROOT, NotRunError, Shape

Cell = dict[str, Any]
KEPT = Path(__file__).parent / "cells" / "peers.jsonl"

TITLES = {
    "A": "the CIFAR-10 benchmark of pfl-research: its `simple_cnn`",
    "B": "the benchmark of BlazeFL: the CNN of PyTorch's tutorial, a fifth of the clients a round",
}
NAMES = {
    "bare": "bare PyTorch loop",
    "pfl": "pfl-research {pfl}",
    "flower": "Flower {flower}",
    "blazefl": "BlazeFL {blazefl}",
    "ours-fp": "ours, fp",
    "ours-ptq": "ours, ptq `{scheme}`",
    "ours-qat": "ours, qat `{scheme}`",
}
COLUMNS = ("contestant", "rounds a second", "s a round", "speed, bare = 1", "start, s", "peak memory, MB", "runs")
TEXT = """## Rounds per second

Printed by `python benchmarks/peers.py`; the runs are in `benchmarks/cells/peers.jsonl`. Repeats take all contestants in
random order, each in a virtual environment of its own with the same torch and Python. One round warms up; the others
are timed by the contestant's own loop. *s a round* is the median of the runs' medians, in brackets the smallest and the
largest; *rounds a second* is its inverse. *Speed* is the bare loop's time, with as many processes and in the same
repeat, over the contestant's: median, smallest and largest. *Start* is the time from the start of the process to the
first round's begin, imports, data and other processes included; Flower's actors load torch in the first round, the one
that is not timed. *Memory* is the peak of the proportional set sizes of all processes of a run, launchers included.

{machine}
- {versions}

{tables}

### What is comparable

The same: images, labels and their clients, cohort sizes, batch size, epochs, plain SGD, number of parameters, and the
number of local steps of every round, which each contestant counts and this program compares. One thread a process.
Nobody evaluates, logs, or writes checkpoints while the clock runs, but for the record of each round that ours writes.

Not the same, since each does it in its own way:

- Whom a cohort holds, and initial weights, are drawn by each contestant's own random numbers.
- pfl takes a client's examples in their order; all others shuffle.
- Ours sends packed updates, sums them exactly (the same bits for any number of processes), and keeps the time of a
  modelled fleet; the bare loop, pfl and BlazeFL add floats up. In ptq and qat ours trains another arithmetic, and what
  arrives is rounded: `{scheme}`.
- *Processes* are those in which clients train. The bare loop and pfl run under torchrun, ours starts its second process
  itself; Flower has as many Ray actors, BlazeFL as many forks, and both have a server beside them, which can use
  another core: one process of theirs is more than one.
- Flower is called by `run_simulation`, which starts the runtime of `flwr run` without its services. BlazeFL's threads,
  its fastest mode, need a Python without the global lock, for which there is no torch here; it asks for Python 3.12 and
  was run on the Python above.
- One host with two cores and no GPU: neither larger cohorts nor several machines, which pfl, Flower and ours have ways
  for, were measured.

{accuracy}"""
ACCURACY = """### What PTQ costs in accuracy

Ours on CIFAR-10 in shape A, users drawn at random, {rounds} rounds, accuracy on all 10,000 test images after the last,
in percent. *ptq* is the deployed `{scheme}` model of a run in which every client trained in PTQ, *fp* the float32 model
of one in which every client trained in fp. Target: ptq within {target} points of fp.

{table}

Mean difference: {difference:+.2f} points ({verdict}).
"""
NO_ACCURACY = """### What PTQ costs in accuracy

Not measured here: it takes CIFAR-10, `python benchmarks/peers.py --cifar10 FOLDER`.
"""
TARGET = 0.5


def main() -> None:
    """Make the environments, run what is missing, print and write the page."""
    options = parse()
    folder = options.environments.absolute()
    if options.quick:
        found = Cells(None)
        measure(found, folder, runs.QUICK, 1, options.contestants, rehearses=False)
    elif options.no_runs:
        found = Cells(options.cells)
    else:
        if options.fresh:
            options.cells.unlink(missing_ok=True)
        found = Cells(options.cells)
        measure(found, folder, runs.SHAPES, options.repeats, options.contestants)
        if options.cifar10:
            measure_accuracy(found, folder, str(Path(options.cifar10).absolute()))
    check(found.lines)
    text = page(found.lines)
    print(text)
    if not (options.quick or options.print_only):
        results.write_section("peers", text, options.output)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny settings, once; nothing is kept or written")
    parser.add_argument("--fresh", action="store_true", help="forget the runs that are kept")
    parser.add_argument("--no-runs", action="store_true", help="only what is there already")
    parser.add_argument("--repeats", type=int, default=runs.REPEATS)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--cifar10", help="folder with train.parquet and test.parquet of uoft-cs/cifar10")
    parser.add_argument("--environments", type=Path, default=ROOT / "runs" / "peers", help="and the images")
    parser.add_argument("--cells", type=Path, default=KEPT)
    parser.add_argument("--output", type=Path, default=results.PAGES / "peers.md")
    parser.add_argument("--print-only", action="store_true", help="leave the page alone")
    return parser.parse_args()


class Cells:
    """What was measured, a line each: first what it was measured on, then the runs in the order in which they ended.

    Args:
        file: Where they are kept; None: nowhere.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        text = file.read_text(encoding="utf-8") if file is not None and file.exists() else ""
        self.lines: list[Cell] = [json.loads(line) for line in text.splitlines()]

    def begin(self, about: Cell) -> None:
        """Tell what the runs to come are measured on.

        Raises:
            SystemExit: Runs of another machine, other versions or other settings are kept.
        """
        if not self.lines:
            self.add(about)
        for key in about:
            if self.lines[0].get(key) != about[key]:
                raise SystemExit(f"{self._file} holds runs with another value of {key!r}: measure anew with --fresh")

    def has(self, **key: Any) -> bool:
        """Whether there is a line with these values."""
        return any(key.items() <= line.items() for line in self.lines)

    def add(self, line: Cell) -> None:
        """Keep one more."""
        self.lines.append(line)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def measure(
    found: Cells,
    folder: Path,
    settings: dict[str, Shape],
    repeats: int,
    contestants: Sequence[str],
    rehearses: bool = True,
) -> None:
    """Run what is missing: in every repeat all contestants in another order, those that fail the rehearsal left out."""
    pythons, unable = environments_of(contestants, folder)
    ours = runs.make_environment("ours", folder)  # it has what the description of the machine needs
    found.begin(about(ours, pythons, settings))
    entries = [(contestant, count) for contestant in contestants for count in PROCESSES]
    for shape in settings.values():
        keys: list[Cell] = [
            {"shape": shape.name, "contestant": contestant, "processes": count} for contestant, count in entries
        ]
        for key in keys:
            is_missing = not all(found.has(**key, repeat=repeat) for repeat in range(repeats))
            failed = unable.get(key["contestant"])
            if failed is None and rehearses and is_missing:
                failed = rehearse(pythons[key["contestant"]], key["contestant"], shape, key["processes"], folder)
            if failed is not None and not found.has(**key, repeat=None):
                found.add({**key, "repeat": None, "failed": failed})
        for repeat in range(repeats):
            random.Random(f"{runs.SEED}/{shape.name}/{repeat}").shuffle(keys)
            for key in keys:
                if not (found.has(**key, repeat=repeat) or found.has(**key, repeat=None)):
                    cell = attempt(pythons[key["contestant"]], key["contestant"], shape, key["processes"], folder)
                    found.add({**key, "repeat": repeat, **cell})


def rehearse(python: Path, contestant: str, shape: Shape, count: int, folder: Path) -> str | None:
    """One run with few clients that is not recorded: why it failed, or None.

    What is compiled and kept on the disk is there from then on, for whoever does so, and so are the images.
    """
    few = dataclasses.replace(shape, cohort=min(4, shape.cohort), epochs=1, rounds=1)
    return attempt(python, contestant, few, count, folder).get("failed")


def environments_of(contestants: Sequence[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Interpreters by contestant, and why those without one have none."""
    pythons, unable = {}, {}
    for contestant in contestants:
        try:
            pythons[contestant] = runs.make_environment(runs.environment_of(contestant), folder)
        except NotRunError as error:
            unable[contestant] = str(error)
    return pythons, unable


def attempt(python: Path, contestant: str, shape: Shape, count: int, folder: Path, more: tuple[str, ...] = ()) -> Cell:
    """What one run came to, or why it failed."""
    try:
        cell: Cell = runs.run(python, contestant, shape, count, folder / "data", more)
        told = f"{min(cell['seconds']):.2f} to {max(cell['seconds']):.2f} s a round"
    except NotRunError as error:
        cell, told = {"failed": str(error)}, str(error)
    print(f"{shape.name}: {contestant}, {count}: {told}", flush=True)
    return cell


def measure_accuracy(found: Cells, folder: Path, cifar10: str) -> None:
    """Ours in fp and PTQ on real images of shape A, two processes; what is there already is not repeated."""
    python = runs.make_environment("ours", folder)
    shape = dataclasses.replace(runs.SHAPES["A"], rounds=runs.ACCURACY_ROUNDS - 1)
    for seed in runs.ACCURACY_SEEDS:
        for contestant in ("ours-fp", "ours-ptq"):
            key = {"shape": "CIFAR-10", "contestant": contestant, "seed": seed}
            if not found.has(**key):
                cell = attempt(python, contestant, shape, max(PROCESSES), folder, (cifar10, str(seed)))
                found.add({**key, **{name: cell[name] for name in ("fp", "quantized", "failed") if name in cell}})


def about(ours: Path, pythons: dict[str, Path], settings: dict[str, Shape]) -> Cell:
    """What runs are measured on: machine, versions, settings."""
    packages = {runs.environment_of(name): python for name, python in pythons.items()}
    return {
        "machine": said(ours, "import machine; print(machine.describe(threads=1))"),
        "versions": {
            name: said(python, f"from importlib.metadata import version; print(version({package!r}))")
            for name, python in packages.items()
            if (package := runs.ENVIRONMENTS[name].package)
        },
        "scheme": runs.SCHEME,
        "settings": {name: dataclasses.asdict(shape) for name, shape in settings.items()},
    }


def said(python: Path, code: str) -> str:
    """What a line of Python prints, with the benchmarks importable."""
    return subprocess.check_output([str(python), "-c", code], text=True, cwd=Path(__file__).parent).strip()


def check(lines: Sequence[Cell]) -> None:
    """See that all did the same work.

    Raises:
        SystemExit: Local steps of a round, or parameters, that differ from the setting or among contestants.
    """
    for name, setting in lines[0]["settings"].items():
        cells = [line for line in lines[1:] if line["shape"] == name and "seconds" in line]
        steps = Shape(**setting).steps
        for cell in cells:
            if set(cell["steps"]) != {steps}:
                raise SystemExit(
                    f"{name}: {cell['contestant']} took {cell['steps']} local steps, not {steps} each round"
                )
        if len({cell["parameters"] for cell in cells}) > 1:
            models = {cell["contestant"]: cell["parameters"] for cell in cells}
            raise SystemExit(f"{name}: models of different sizes: {models}")


def page(lines: Sequence[Cell]) -> str:
    """The page's section.

    Args:
        lines: What they were measured on, then the runs.
    """
    about, cells = lines[0], lines[1:]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if name != "bare")
    tables = [shape_table(about, Shape(**setting), cells) for setting in about["settings"].values()]
    return TEXT.format(
        machine=about["machine"],
        versions=versions,
        tables="\n\n".join(tables),
        scheme=about["scheme"],
        accuracy=accuracy(about, [cell for cell in cells if cell["shape"] == "CIFAR-10"]),
    )


def shape_table(about: Cell, shape: Shape, cells: Sequence[Cell]) -> str:
    """One shape's setting and tables, one for each number of processes."""
    mine = [cell for cell in cells if cell["shape"] == shape.name]
    parameters = next((cell["parameters"] for cell in mine if "parameters" in cell), 0)
    parts = [
        f"### {shape.name}: {TITLES[shape.name]}",
        f"{parameters:,} parameters, 3x32x32 images of random numbers; {shape.clients:,} clients with {shape.examples} "
        f"each, {shape.cohort} of them a round; batches of {shape.batch_size}, {shape.epochs} local "
        f"epoch{'s' if shape.epochs > 1 else ''}, SGD: {shape.steps:,} local steps a round. Measured: {shape.rounds} "
        f"round{'s' if shape.rounds > 1 else ''} a run.",
    ]
    for processes in PROCESSES:
        here = [cell for cell in mine if cell["processes"] == processes]
        rows = [row for name in CONTESTANTS if (row := row_of(about, name, here))]
        parts += [f"{'One process' if processes == 1 else f'{processes} processes'}:", results.table(COLUMNS, rows)]
    return "\n\n".join(parts)


def row_of(about: Cell, contestant: str, cells: Sequence[Cell]) -> list[str]:
    """A contestant's row: figures, or why there are none; empty where it was not run.

    Args:
        about: What was measured on.
        contestant: Its name.
        cells: All runs of the shape with as many processes.
    """
    mine = [cell for cell in cells if cell["contestant"] == contestant]
    if not mine:
        return []
    name = NAMES[contestant].format(
        scheme=about["scheme"], **{"pfl": "", "flower": "", "blazefl": ""} | about["versions"]
    )
    good = {cell["repeat"]: cell for cell in mine if "seconds" in cell}
    failed = [cell["failed"] for cell in mine if "failed" in cell]
    if not good:
        return [name, f"did not run: {failed[0]}", "", "", "", "", f"0 of {len(mine)}"]
    bare = {
        cell["repeat"]: median(cell["seconds"]) for cell in cells if cell["contestant"] == "bare" and "seconds" in cell
    }
    times = [median(cell["seconds"]) for cell in good.values()]
    ratios = [bare[repeat] / median(cell["seconds"]) for repeat, cell in good.items() if repeat in bare]
    return [
        name,
        f"{1 / median(times):.3f}",
        spread(times),
        f"{spread(ratios)}" if ratios else "",
        f"{median(cell['startup_seconds'] for cell in good.values()):.1f}",
        f"{median(cell['peak_bytes'] for cell in good.values()) / 1e6:,.0f}",
        f"{len(good)}" + (f" of {len(mine)}: {failed[0]}" if failed else ""),
    ]


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def accuracy(about: Cell, cells: Sequence[Cell]) -> str:
    """Accuracy of PTQ beside fp on real images, where both were run for a seed."""
    found = {(cell["contestant"], cell["seed"]): cell for cell in cells if "fp" in cell}
    seeds = [seed for name, seed in found if name == "ours-fp" and ("ours-ptq", seed) in found]
    if not seeds:
        return NO_ACCURACY
    pairs = [(100 * found["ours-fp", seed]["fp"], 100 * found["ours-ptq", seed]["quantized"]) for seed in seeds]
    rows = [
        [str(seed), f"{fp:.2f}", f"{ptq:.2f}", f"{ptq - fp:+.2f}"] for seed, (fp, ptq) in zip(seeds, pairs, strict=True)
    ]
    difference = fmean(ptq - fp for fp, ptq in pairs)
    return ACCURACY.format(
        rounds=runs.ACCURACY_ROUNDS,
        scheme=about["scheme"],
        target=TARGET,
        table=results.table(("seed", "fp", "ptq", "difference"), rows),
        difference=difference,
        verdict="met" if difference >= -TARGET else "missed",
    )


if __name__ == "__main__":
    main()
