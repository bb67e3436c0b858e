"""What is choosing PTQ or QAT per client worth? Allocators side by side, on grids of schemes and Dirichlet alphas.

    python benchmarks/allocation.py --grid small --workers 2          # hours; writes docs/results/grid-small.md
    python benchmarks/allocation.py --grid small --only w2a8:0.05 --cells 20 --print-only
    python benchmarks/allocation.py --grid large --no-runs            # the page from the cells that are there

Every run is kept as it ends, and is never repeated: the same command goes on where it was stopped, and a line removed
from `benchmarks/cells/GRID.jsonl` is a cell to be run again. The settings are in `allocation_grids.py`; they were fixed
before the first run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grid_files
import machine
import results
import yaml
from allocation_grids import GRID_SEEDS, GRIDS, LANES, Grid
from allocation_tables import difference_table, spread_table, time_table, wall_table

from fedhq_lightning.experiments.cells import Cell
from fedhq_lightning.experiments.comparison import Compared, Comparison, Kept
from fedhq_lightning.experiments.outcomes import Outcome, outcomes
from fedhq_lightning.experiments.side_by_side_figures import curves_svg
from fedhq_lightning.launch.resolve import resolve

FOLDER = Path(__file__).parent / "cells"
TEXT = """## Allocation, {grid} grid

{setting}; {fleet}{uplink}cosine over the rounds, first and last layer at 8 bits, Dirichlet over
labels. Runs of one seed share initial weights, partition, devices and cohorts. {seeds} seeds.

Printed by `{command}`; the cells are in `benchmarks/cells/{grid}.jsonl`.

{machine}

### Quantized accuracy at equal virtual time

In percent: the mean over three evaluations when the shortest run of the same seed ends; mean over seeds ± standard
deviation.

{at}

### Quantized accuracy at the end

{end}

{deployed}### What rounding costs

Accuracy of the global model in float32 less that of the same model quantized, at the end, in points.

{lost}

### Length of the runs, virtual seconds

{seconds}

### Paired differences of quantized accuracy at equal virtual time

The first less the second, in points, with the 95 % interval of the paired t test; **bold** where it leaves out 0; no
interval of fewer than three seeds. The last column compares the end of the runs. Rows in italics take several settings
together: the value of a seed is its mean over them. `hybrid` is coarse + fine. {trials}

{differences}
{more}"""
DEPLOYED = """### Deployed models on test data

Quantized accuracy, in percent, of the round that validation chose, whenever that was; on images that chose nothing.

{table}

"""
TIMES = """
{pictures}

### Time to target

To the quantized accuracy that all-QAT `fake` of the same seed has at its end, less half a point: time of the first over
that of the second, geometric mean over seeds with its 95 % interval; virtual time where nothing else is said. *n of m*:
pairs in which both reached it. *Bound*: the straggler's t_ptq over its t_qat, `fake` or not: how short all-PTQ's rounds
are beside all-QAT's. A run that needs fewer rounds to the target comes below it. Wall times are given only where each
run was pinned to a core of its own, with another such run on the other core.

{times}
"""
WALL = """
### Wall seconds of the runs

{table}
"""


def main() -> None:
    """Run what is missing, print, write the page."""
    options = parse()
    with cells_of(options) as folder:
        if not options.no_runs:
            run_missing(options, folder)
        write(options, kept_in(options, folder))


@contextmanager
def cells_of(options: argparse.Namespace) -> Iterator[Path]:
    """The grid's cells in a folder; those that are run there are added to its file at the end."""
    file = options.folder / f"{options.grid}.jsonl"
    if options.no_runs:
        with tempfile.TemporaryDirectory() as name:
            grid_files.unpack(file, Path(name))
            yield Path(name)
    else:
        with grid_files.unpacked(file, options.runs / "cells" / options.grid) as folder:
            yield folder


def run_missing(options: argparse.Namespace, folder: Path) -> None:
    """Run cells, as many as the command line asks for."""
    grid, left = GRIDS[options.grid], options.cells
    for key in keys_of(grid, options.only):
        name = file_name(grid, *key)
        compared = comparison(options, folder, name, recipe(grid, *key), options.allocators, options.seeds)
        left = run(compared, name, options.workers, left)
        if left == 0:
            break


def kept_in(options: argparse.Namespace, folder: Path) -> dict[str, Kept]:
    """All cells that are there, whatever was run now.

    Raises:
        SystemExit: There are none.
    """
    grid = GRIDS[options.grid]
    kept: dict[str, Kept] = {}
    for key in keys_of(grid, []):
        name = file_name(grid, *key)
        if (folder / name).exists():
            kept[name] = comparison(options, folder, name, recipe(grid, *key)).kept()
            if kept[name].missing:
                print(f"{name}: {len(kept[name].missing)} cells are not there yet", flush=True)
    if not any(each.cells for each in kept.values()):
        raise SystemExit(f"--grid {options.grid}: no cells yet in {options.folder}")
    return {name: each for name, each in kept.items() if each.cells}


def write(options: argparse.Namespace, kept: Mapping[str, Kept]) -> None:
    """Print the section; write it and its pictures, unless they are only to be printed."""
    body = section(options.grid, kept)
    print(body)
    if not options.print_only:
        page = options.output or results.PAGES / f"grid-{options.grid}.md"
        draw(options.grid, kept, page.parent)
        results.write_section(f"allocation {options.grid}", body, page)


def comparison(
    options: argparse.Namespace,
    folder: Path,
    name: str,
    text: str,
    allocators: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Compared:
    """One setting; all of the grid's allocators and seeds unless they are given."""
    grid = GRIDS[options.grid]
    return Compared(
        Comparison(
            name,
            resolve(name, text).recipe.text,
            allocators or grid.allocators,
            grid.seeds if seeds is None else seeds,
            folder / name,
            grid_seeds=GRID_SEEDS if "best-fixed" in (allocators or grid.allocators) else None,
            runs=options.runs / options.grid / name,
            keeps_runs=False,
        )
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=list(GRIDS), default="small")
    parser.add_argument("--only", action="append", default=[], metavar="[MODEL:]SCHEME:ALPHA", help="may be repeated")
    parser.add_argument("--allocators", nargs="+", help="default: the grid's")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the grid's")
    parser.add_argument("--cells", type=int, help="run at most so many now")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the grids' files")
    parser.add_argument("--runs", type=Path, default=Path("runs/allocation"), help="what is not finished")
    parser.add_argument("--no-runs", action="store_true", help="only what is there already")
    parser.add_argument("--output", type=Path, help="default: the grid's page in docs/results")
    parser.add_argument("--print-only", action="store_true", help="leave the page alone")
    return parser.parse_args()


def keys_of(grid: Grid, only: Sequence[str]) -> list[tuple[str, str, float]]:
    """Models, schemes and alphas to be run.

    Raises:
        SystemExit: One that the grid does not have.
    """
    keys = [(model, scheme, alpha) for model in grid.models for scheme, alpha in grid.cells]
    named = {f"{model}:{scheme}:{alpha:g}": (model, scheme, alpha) for model, scheme, alpha in keys}
    chosen = []
    for text in only:
        found = [key for name, key in named.items() if name == text or name.partition(":")[2] == text]
        if not found:
            raise SystemExit(f"--only {text}: the grid has {', '.join(named)}")
        chosen += found
    return chosen or keys


def file_name(grid: Grid, model: str, scheme: str, alpha: float) -> str:
    """Folder of one setting."""
    return "-".join([*([model] if len(grid.models) > 1 else []), scheme, f"{alpha:g}"])


def recipe(grid: Grid, model: str, scheme: str, alpha: float) -> str:
    """One setting as a recipe."""
    partitioner = {
        "class_path": "flwr_datasets.partitioner.DirichletPartitioner",
        "init_args": {
            **{"num_partitions": grid.num_clients, "partition_by": "label", "alpha": alpha},
            **{"min_partition_size": 0, "seed": 0},
        },
    }
    data = {"datamodule": dict(grid.datamodule), "partitioner": partitioner}
    trainer = {
        **{"scheme": scheme, "fleet": "mixed", "uplink": "weights", "monitor": "val_accuracy", "round_lr": "cosine"},
        **{"logger": False, "accelerator": "cpu", "checkpoint_every_n_rounds": 5, **grid.trainer},
    }
    trainer["lanes"] = {**LANES, **trainer.get("lanes", {})}
    content = {
        "model": dict(grid.models[model]),
        "data": {"class_path": "fedhq_lightning.data.PartitionedDataModule", "init_args": data},
        "trainer": trainer,
    }
    return str(yaml.safe_dump(content, sort_keys=False))


def run(compared: Compared, name: str, workers: int, left: int | None) -> int | None:
    """Run cells of one setting; how many may still be run."""
    started, done = time.perf_counter(), 0

    def on_end(job: Any, seconds: float, number: int, total: int) -> None:
        nonlocal done
        done = number
        minutes = (time.perf_counter() - started) / 60
        print(
            f"{name}: {job.allocator}, seed {job.seed}: {seconds:.0f} s; {number} of {total}, {minutes:.0f} min",
            flush=True,
        )

    compared.run(workers, left, on_end)
    return None if left is None else left - done


def section(grid_name: str, kept: Mapping[str, Kept]) -> str:
    """The grid's section of the page, from the cells that are there."""
    grid = GRIDS[grid_name]
    found = {name: outcomes(each.cells) for name, each in kept.items()}
    counts = sorted({len({each.seed for each in group}) for group in found.values()})
    return TEXT.format(
        grid=grid_name,
        setting=grid.setting,
        fleet="" if "fleet" in grid.trainer else "fleet `mixed`, ",
        uplink="" if "uplink" in grid.trainer else "`uplink: weights`, ",
        seeds=" to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))),
        command=" ".join(["python benchmarks/allocation.py", *sys.argv[1:]]),
        machine=machine.describe(threads=1),
        at=spread_table(found, lambda each: 100 * each.metric_at, grid.allocators),
        end=spread_table(found, lambda each: 100 * each.metric, grid.allocators),
        deployed=deployed(found, grid.allocators),
        lost=spread_table(found, lambda each: 100 * (each.metric_fp - each.metric), grid.allocators),
        seconds=spread_table(found, lambda each: each.virtual_seconds, grid.allocators),
        differences=difference_table(found, grid.differences),
        trials=trials([cell for each in kept.values() for cell in each.cells if cell.allocator == "hybrid"]),
        more=times_of(grid_name, found, kept),
    )


def deployed(found: Mapping[str, Sequence[Outcome]], allocators: Sequence[str]) -> str:
    """The deployed models on test data; nothing where the runs had none."""
    names = {each.deployed_on for group in found.values() for each in group}
    if names != {"test_accuracy"}:
        return ""
    return DEPLOYED.format(table=spread_table(found, lambda each: 100 * each.deployed, allocators))


def trials(cells: Sequence[Cell]) -> str:
    """What became of the boundary in the runs of the hybrid."""
    taken_up = sum(any(cell.rounds["allocation/incumbent"][1:]) for cell in cells)
    by_risk = sum(cell.rounds["allocation/share"][1] > 0 for cell in cells)
    return (
        f"Of its {len(cells)} runs {taken_up} took up a boundary\nthat they tried, and {by_risk} began with a `share` "
        "above 0."
    )


def times_of(grid_name: str, found: Mapping[str, Sequence[Outcome]], kept: Mapping[str, Kept]) -> str:
    """Curves, and times to target where what people have today is among the allocators."""
    grid = GRIDS[grid_name]
    if "all-qat-fake" not in grid.allocators:
        return f"\n{pictures(grid_name, list(found))}\n" if grid.drawn else ""
    text = TIMES.format(
        pictures=pictures(grid_name, list(found)),
        times=time_table(found, kept, grid.tells_wall),
    )
    return text + WALL.format(table=wall_table(kept, grid.allocators)) if grid.tells_wall else text


def pictures(grid_name: str, settings: Sequence[str]) -> str:
    """Where the page shows curves."""
    return "\n\n".join(
        f"![Quantized accuracy over virtual time, {setting}: mean of the seeds, from least to largest]"
        f"({picture_of(grid_name, setting)})"
        for setting in GRIDS[grid_name].drawn
        if setting in settings
    )


def draw(grid_name: str, kept: Mapping[str, Kept], folder: Path) -> None:
    """Draw the settings that the page shows."""
    for setting in GRIDS[grid_name].drawn:
        if setting in kept:
            path = folder / picture_of(grid_name, setting)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(curves_svg(kept[setting].cells), encoding="utf-8")


def picture_of(grid_name: str, setting: str) -> str:
    """File of a setting's curves, as the page names it."""
    return f"../figures/allocation-{grid_name}-{setting}.svg"


if __name__ == "__main__":
    main()
