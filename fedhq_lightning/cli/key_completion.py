"""Keys of a recipe, and what they may be, as Tab completes them: by text alone, for torch would take seconds."""

from __future__ import annotations

import argparse
import ast
import shlex
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from typing import Any

from argcomplete.finders import CompletionFinder

from fedhq_lightning.cli import completers
from fedhq_lightning.cli.parser import Parser, completed_by
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.recipe.keys import dotted_keys
from fedhq_lightning.support.yaml_text import parse_yaml

SCHEMES = ("w8a8", "w4a8", "w3a8", "w2a8", "w4a4", "w8a8s", "w4a8s", "w4a4s", "w4a8-g32", "w3a8-g32", "w8", "w4", "w3")
"""Of the many that there are."""
UPLINKS, DOWNLINKS, EXPORTS = ("delta", "weights"), ("fp32", "scheme"), ("onnx", "executorch", "aoti")
ROUNDINGS = ("nearest", "stochastic")
ON_CLIENT_ERROR, MONITOR_MODES = ("quarantine", "retry", "raise"), ("min", "max")
ROUND_LR, PRECISIONS = ("constant", "cosine", "linear"), ("32-true", "bf16-mixed")
FEDERATED_DATA = ("PartitionedDataModule", "CSVDataModule", "BreastCancerHospitals", "ShakespeareSpeakers")
_TRUTH = ("true", "false")


def complete(parser: Parser, line: str) -> None:
    """Answer the shell, and end the process.

    Args:
        parser: Of all commands.
        line: What was typed so far.
    """
    recipe = _recipe(line)
    keys = [f"--{key}" for key in dict.fromkeys([*trainer_arguments(), *recipe])]
    for command in parser.commands.values():
        if command.get_default("takes_overrides"):
            for key in keys:
                _add(command, key)
    finder = _Finder()
    finder.keys = frozenset(keys)
    finder(parser, always_complete_options=False)


def trainer_arguments() -> dict[str, tuple[str, ...]]:
    """`trainer.NAME` of each argument of the trainer, and whether it is true or false."""
    source = files("fedhq_lightning").joinpath("trainer.py").read_text(encoding="utf-8")
    classes = [each for each in ast.parse(source).body if isinstance(each, ast.ClassDef)]
    (trainer,) = (each for each in classes if each.name == "FederatedTrainer")
    (init,) = (each for each in trainer.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
    found = dict[str, tuple[str, ...]]()
    for argument in init.args.args[1:]:
        is_truth = isinstance(argument.annotation, ast.Name) and argument.annotation.id == "bool"
        found[f"trainer.{argument.arg}"] = _TRUTH if is_truth else ()
    return found


def values_of(key: str) -> Iterable[str]:
    """What a key may be; nothing where it may be anything."""
    known: Mapping[str, Callable[[], Iterable[str]]] = {
        "trainer.scheme": lambda: SCHEMES,
        "trainer.uplink": lambda: UPLINKS,
        "trainer.downlink": lambda: DOWNLINKS,
        "trainer.uplink_rounding": lambda: ROUNDINGS,
        "trainer.export": lambda: EXPORTS,
        "trainer.export_inputs": lambda: ("pixels",),
        "trainer.on_client_error": lambda: ON_CLIENT_ERROR,
        "trainer.monitor_mode": lambda: MONITOR_MODES,
        "trainer.round_lr": lambda: ROUND_LR,
        "trainer.precision": lambda: PRECISIONS,
        "trainer.logger": lambda: _TRUTH,
        "trainer.fleet": _fleets,
        "trainer.aggregator": lambda: names_in("federated/algorithms/__init__.py", but=("Aggregator",)),
        "trainer.privacy": lambda: names_in("federated/privacy/__init__.py"),
        "trainer.secure_aggregation": lambda: names_in("federated/secure/__init__.py"),
        "trainer.robust_rule": lambda: names_in("federated/robust/__init__.py", but=("RobustRule",)),
        "trainer.callbacks": lambda: [each for each in names_in("callbacks/__init__.py") if each.endswith("Allocator")],
        "model": lambda: names_in(
            "models/__init__.py", "fedhq_lightning.models.", but=("Classifier", "TabularInput", "add_lora")
        ),
        "data": lambda: [f"fedhq_lightning.data.{name}" for name in FEDERATED_DATA],
        "data.datamodule": lambda: names_in(
            "data/__init__.py",
            "fedhq_lightning.data.",
            but=("FederatedDataModule", "CharacterDataModule", "TableForm", *FEDERATED_DATA),
        ),
    }
    return known[key]() if key in known else trainer_arguments().get(key, ())


def names_in(file: str, prefix: str = "", but: Iterable[str] = ()) -> list[str]:
    """What a file of the package says to be public, without importing it.

    Args:
        file: Path in the package.
        prefix: Put before each.
        but: Not these.
    """
    tree = ast.parse(files("fedhq_lightning").joinpath(file).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return [f"{prefix}{name}" for name in ast.literal_eval(node.value) if name not in but]
    return []


def _fleets() -> list[str]:
    from fedhq_lightning.devices.device_profile import FLEET_PREFIX, shipped_names

    return [name.removeprefix(FLEET_PREFIX) for name in shipped_names() if name.startswith(FLEET_PREFIX)]


def _recipe(line: str) -> list[str]:
    """Keys that the recipe on the line sets, or none."""
    try:
        words = shlex.split(line)[2:]
    except ValueError:  # a quotation that is not closed yet
        return []
    for word in words:
        if word.startswith("-"):
            continue
        try:
            content = parse_yaml(recipe_files.find(word)[1])
        except ConfigurationError:
            continue
        if isinstance(content, dict):
            return [key for key in dotted_keys(content) if not key.endswith("class_path")]
    return []


def _add(command: argparse.ArgumentParser, flag: str) -> None:
    if flag not in command._option_string_actions:
        action = command.add_argument(flag, metavar="VALUE")
        key = flag.removeprefix("--")
        completed_by(action, lambda prefix="", **_: _values(key, prefix))


def _values(key: str, prefix: str) -> list[str]:
    found = list(values_of(key))
    return [*found, *completers.yaml_files(prefix)] if key == "trainer.fleet" else found


class _Finder(CompletionFinder):
    """Ends a key with `=`, after which its value comes."""

    keys: frozenset[str] = frozenset()

    def collect_completions(self, *arguments: Any, **keywords: Any) -> list[str]:
        found: list[str] = super().collect_completions(*arguments, **keywords)
        return [f"{each}=" if each in self.keys else each for each in found]
