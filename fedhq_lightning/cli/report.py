"""`fedhq report`."""

from __future__ import annotations

import argparse
import sys

from fedhq_lightning.cli import completers
from fedhq_lightning.cli.parser import AddCommand, completed_by, path
from fedhq_lightning.support.quiet import say_line

_EPILOG = """examples:
  fedhq report runs/digits-smoke/20250131-120000-0a1b2c                write its report.html anew
  fedhq report first-try another-try                                   two runs by their names
  fedhq report runs/digits-smoke/* --output all.html                   several runs side by side, in one file
"""


def add(add_command: AddCommand) -> None:
    """Declare the subcommand."""
    report = add_command(
        "report",
        _report,
        "Write the report of a run, or of several side by side.",
        _EPILOG,
        takes_overrides=False,
    )
    directories = report.add_argument(
        "run_dirs", metavar="RUN_DIR", type=path, nargs="+", help="a run's directory or name"
    )
    completed_by(directories, completers.run_directories)
    text = "default: report.html of the one run; comparison.html here for several"
    report.add_argument("--output", metavar="FILE", type=path, help=text)


def _report(known: argparse.Namespace, rest: list[str]) -> None:
    from fedhq_lightning.cli.report_runs import report_runs
    from fedhq_lightning.run.run_names import run_called

    run_dirs = [run_called(each) for each in known.run_dirs]
    say_line(f"{report_runs(run_dirs, known.output)} written", sys.stdout)
