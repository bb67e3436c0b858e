"""`fedhq export`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedhq_lightning.cli import completers
from fedhq_lightning.cli.parser import AddCommand, completed_by, find_own_modules, naming, path
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.recipe.identity import SETTINGS_THAT_CHANGE_NO_BIT, changes, in_words
from fedhq_lightning.support.quiet import say_line

_EPILOG = """examples:
  fedhq export runs/digits-smoke/20250131-120000-0a1b2c --client 3   one client's, into clients/3/ of the run
  fedhq export first-try --client 3 --output for-client-3
  fedhq export first-try --format onnx executorch                    everybody's, into exported/ of the run

A client has a model of its own where layers are personal, with Ditto, and where it fine-tuned the global one. What is
written is what a run's model/ holds, evaluated on what the client holds back, or on the held-out data. It is made
of the run's recipe, data and newest checkpoint; model/ stays as it is.
"""
_ON_ONE_PROCESS = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")


def add(add_command: AddCommand) -> None:
    """Declare the subcommand."""
    export = add_command("export", _export, "Write a client's model, or further files of everybody's.", _EPILOG)
    text = "the directory of the run, or its name (fedhq runs)"
    completed_by(export.add_argument("run_dir", metavar="RUN", type=path, help=text), completers.run_directories)
    text = "whose model; default: everybody's"
    completed_by(export.add_argument("--client", metavar="ID", help=text), completers.clients_with_models)
    text = "files beside model.pt2: onnx, executorch, aoti; default: those that the recipe names"
    formats = export.add_argument("--format", metavar="FORMAT", nargs="+", default=[], help=text)
    completed_by(formats, completers.formats)
    export.add_argument("--output", metavar="DIR", type=path, help="a new folder, or that of an earlier export")


def _export(known: argparse.Namespace, rest: list[str]) -> None:
    find_own_modules()
    with naming(f"export {known.run_dir}"):
        folder = export_models(known.run_dir, known.client, known.format, known.output, rest)
    say_line(f"model: {folder}", sys.stdout)


def export_models(
    run: Path, client_id: str | None, formats: Sequence[str], output: Path | None, overrides: Sequence[str] = ()
) -> Path:
    """Write a model of a run that is there.

    Args:
        run: Its directory or name.
        client_id: Whose model, as text; None for everybody's.
        formats: Files beside `model.pt2`; none for those that the recipe names.
        output: A folder; None for one in the run directory.
        overrides: As `fedhq run` takes them, of values that change no bit.

    Returns:
        The folder.

    Raises:
        ConfigurationError: No run, one that was started from Python, another recipe, a client without a model of its
            own, or a file that could not be written.
    """
    from fedhq_lightning.deploy.formats import FORMATS
    from fedhq_lightning.launch.resolve import resolve
    from fedhq_lightning.quantize.lane_options import default_of_option
    from fedhq_lightning.run.run_names import run_called
    from fedhq_lightning.support.yaml_text import parse_yaml

    run_dir = recipe_files.run_of(run_called(run))
    recipe = run_dir / "recipe.yaml"
    if not recipe.is_file():
        raise ConfigurationError(recipe_files.why_no_run(run_dir))
    text = recipe_files.read(recipe)
    if text.startswith(recipe_files.STARTED_FROM_PYTHON):
        raise ConfigurationError(
            "this run was started from Python; in a script make its trainer, set trainer.run_dir to this folder, and "
            "call trainer.export_client(ID, module=module, datamodule=datamodule)"
        )
    asked = [f"--trainer.export=[{','.join(formats)}]"] if formats else []
    resolved = resolve(run_dir.resolve().parent.name, text, [*_ON_ONE_PROCESS, *asked, *overrides])
    before, now = parse_yaml(text), parse_yaml(resolved.recipe.text)
    if found := changes(before, now, SETTINGS_THAT_CHANGE_NO_BIT, default_of_option):
        raise ConfigurationError(f"the model is that of the run's own recipe: {in_words(found)}; leave these out")
    with resolved.keys_named():
        trainer, module, data = resolved.instantiate()
        trainer.run_dir = run_dir
        if client_id is None:
            folder = trainer.export_model(output, module, data)
        else:
            folder = trainer.export_client(client_id, output, module, data)
    if missing := [each for each in formats if not (folder / FORMATS[each].file).exists()]:
        raise ConfigurationError(f"{folder}: no {', '.join(missing)}, as said above; the rest is there")
    return folder
