"""LightningCLI of a script of one's own, with `FederatedTrainer` as its trainer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.support.yaml_text import parse_yaml
from fedhq_lightning.trainer import FederatedTrainer


class FederatedCLI(LightningCLI):
    """`LightningCLI` whose trainer is a `FederatedTrainer`: `python script.py fit --config recipe.yaml`.

        FederatedCLI(MyModule, MyClients)

    Keys are those of a recipe, with classes by their whole names, and so is the run: the same bits as of `fedhq run`,
    and `fedhq resume`, `eval` and `report` take it. Arguments of your own, links that are applied when arguments are
    parsed, and `before_fit` work as in Lightning; optimizers are the module's, callbacks those of `trainer.callbacks`.
    What a recipe refuses ends the script with exit code 2, and a run that comes to nothing with 1.

    Args:
        model_class: Of the module, whose arguments are then keys under `model`; None for any, by `class_path`.
        datamodule_class: Of the data, likewise.
        name: Of the recipe, for the run's folder; default: the script's.
        **settings: Others of LightningCLI, such as `run=False` or `args`.

    Raises:
        ConfigurationError: A callback or link of the script that a recipe has no place for.
    """

    def __init__(
        self,
        model_class: type[L.LightningModule] | None = None,
        datamodule_class: type[FederatedDataModule] | None = None,
        *,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        self._recipe_name = name or Path(sys.argv[0]).stem or "script"
        super().__init__(
            model_class,
            datamodule_class or FederatedDataModule,
            trainer_class=FederatedTrainer,  # type: ignore[arg-type]  # which is no Trainer
            save_config_callback=None,  # the run keeps its recipe
            auto_configure_optimizers=False,
            **{"subclass_mode_data": datamodule_class is None, **settings},
        )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return {"fit": {"module", "datamodule"}}

    @override
    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """No `seed_everything`: the run is seeded by `trainer.seed`."""

    @override
    def _set_seed(self) -> None:
        """As `add_default_arguments_to_parser`."""

    @override
    def _parse_ckpt_path(self) -> None:
        """A checkpoint's arguments replace none that are given: those are refused where they differ."""

    @override
    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(FederatedTrainer, "trainer", instantiate=False, sub_configs=True)
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=self.subclass_mode_model)
        parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=self.subclass_mode_data)

    @override
    def _add_instantiators(self) -> None:
        """For Lightning's own `instantiate_classes`, in words that jsonargparse deprecates."""

    @override
    def instantiate_classes(self) -> None:
        self._check_script()
        self.config_init = self.config
        given = parse_yaml(self.parser.dump(self.config, skip_link_targets=False, skip_unset=False))
        given = given if self.subcommand is None else given[self.subcommand]
        recipe = {
            "model": given["model"] if self.subclass_mode_model else _node(self._model_class, given["model"]),
            "data": given["data"] if self.subclass_mode_data else _node(self._datamodule_class, given["data"]),
            "trainer": given["trainer"],
        }
        with self._mistakes_told():
            resolved = resolve(self._recipe_name, yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False))
            self.trainer, self.model, self.datamodule = resolved.instantiate()  # type: ignore[assignment]
        # Its classes are found by the script's name from elsewhere.
        text = resolved.recipe.text.replace("class_path: __main__.", f"class_path: {_script()}.")
        self.trainer.recipe = replace(resolved.recipe, text=text)  # type: ignore[attr-defined]

    def fit(self, model: L.LightningModule, datamodule: FederatedDataModule, ckpt_path: str | None = None) -> None:
        """The subcommand."""
        with self._mistakes_told():
            self.trainer.fit(model, datamodule, ckpt_path=ckpt_path)

    @contextmanager
    def _mistakes_told(self) -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:
            self.parser.error(str(error))
        except RunError as error:
            self.parser.exit(1, f"error: {error}\n")

    def _check_script(self) -> None:
        parser = self._parser(self.subcommand)
        links = getattr(getattr(parser, "_links_group", None), "_group_actions", ())
        if late := [each for each in links if each.apply_on == "instantiate"]:
            raise ConfigurationError(
                f"the link to {late[0].target[0]} is applied to objects, and a recipe holds values; link values, with "
                "apply_on='parse'"
            )
        if parser.callback_keys or "callbacks" in self.trainer_defaults:
            raise ConfigurationError(
                f"callbacks of the script ({', '.join(parser.callback_keys) or 'trainer_defaults'}) are in no recipe; "
                "give them by class_path under trainer.callbacks"
            )


def _script() -> str:
    """What the script is called where it is imported."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return str(spec.name) if spec is not None else Path(getattr(main, "__file__", None) or "script").stem


def _node(made: Any, arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{made.__module__}.{made.__qualname__}", "init_args": arguments}
