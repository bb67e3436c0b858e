"""`fedhq compare`."""

from __future__ import annotations

import argparse

from fedhq_lightning.cli import completers
from fedhq_lightning.cli.parser import AddCommand, completed_by, find_own_modules, naming, path
from fedhq_lightning.cli.recipes import add_recipe
from fedhq_lightning.recipe import files as recipe_files

_EPILOG = """examples:
  fedhq compare digits-smoke --vary trainer.aggregator=FedAvg,FedProx --vary trainer.scheme=w4a8,w2a8 --seeds 0 1 2
  fedhq compare digits-smoke --allocators all-ptq all-qat free-qat --seeds 0 1 2
  fedhq compare mnist5k-hybrid --allocators all-ptq all-qat-fake all-qat coarse hybrid random-tier --workers 2
  fedhq compare digits-smoke --allocators all-ptq mine=my_module.MyAllocator --trainer.scheme=w2a8

--vary KEY=VALUE,VALUE varies a key of the recipe; of several every combination is run. Values are as in --KEY=VALUE.
--allocators varies the allocator, by names; with --vary the default is the recipe's own.

allocators: all-fp, all-ptq, all-qat-fake (conventional fake quantization), all-qat (as the recipe has it), free-qat,
coarse, hybrid, random-total and random-tier (matched to hybrid), fixed:SLACK:SHARE, best-fixed (of a grid, on other
seeds), and NAME=CLASS_PATH or NAME=FILE.yaml (class_path and init_args) for your own.

Runs of one seed share initial weights, partition, devices and cohorts, unless these are varied. Every cell is kept as
it ends: the same command goes on where it was stopped, and more values, allocators or seeds can be added to it.
"""


def add(add_command: AddCommand) -> None:
    """Declare the subcommand; numbers stay text, so that the command can say what is wrong with them."""
    command = add_command(
        "compare", _compare, "Put values of a recipe, or allocators, side by side over seeds.", _EPILOG
    )
    add = command.add_argument
    add("--vary", action="append", metavar="KEY=VALUES", default=[], help="a key and its values; may be repeated")
    text = "default: all-ptq all-qat-fake all-qat free-qat hybrid; with --vary the recipe's own"
    completed_by(add("--allocators", nargs="*", metavar="NAME", help=text), completers.allocators)
    add("--seeds", nargs="*", metavar="SEED", default=["0", "1", "2"], help="one run of each a seed; default: 0 1 2")
    text = "quantized metric to reach; default: all-QAT's at its end, less 0.005; else with --vary the first's"
    add("--target", metavar="X", help=text)
    add("--at", metavar="SECONDS", help="virtual time to compare at; default: the end of the seed's shortest run")
    add("--baseline", metavar="NAME", help="whom differences are against; default: all-ptq, else all-QAT or the first")
    add("--reference", metavar="NAME", help="whom random allocators are matched to; default: hybrid, else coarse")
    add("--grid-seeds", nargs="*", metavar="SEED", help="seeds that best-fixed is chosen on; default: the next two")
    add("--folder", type=path, metavar="DIR", help="where cells and results are kept; default: comparisons/NAME")
    add("--workers", default="1", metavar="N", help="processes at once, each with the recipe's threads; default: 1")
    add("--cells", metavar="N", help="run at most so many cells now")
    add("--drop-runs", action="store_true", help="remove run directories once their cells are kept")
    add_recipe(command)


def _compare(known: argparse.Namespace, rest: list[str]) -> None:
    name, _ = recipe_files.find(known.recipe)
    find_own_modules()
    with naming(f"compare {name}"):
        from fedhq_lightning.experiments.run_comparison import compare_recipe

        compare_recipe(known, rest)
