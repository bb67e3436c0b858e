"""LightningCLI of a script of one's own, with `FederatedTrainer` as its trainer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.support.yaml_text import parse_yaml
from fedhq_lightning.trainer import FederatedTrainer


class FederatedCLI(LightningCLI):
    """`LightningCLI` whose trainer is a `FederatedTrainer`: `python script.py fit --config recipe.yaml`.

        FederatedCLI(MyModule, MyClients)

    Keys are those of a recipe, and so is the run: the same bits as of `fedhq run`, and `fedhq resume`, `eval` and
    `report` take it. Links between arguments, arguments of your own and `before_fit` work as in Lightning; optimizers
    are the module's. What a recipe refuses ends the script with exit code 2.

    Args:
        model_class: Of the module, whose arguments are then keys under `model`; None for any, by `class_path`.
        datamodule_class: Of the data, likewise.
        name: Of the recipe, for the run's folder; default: the script's.
        **settings: Others of LightningCLI, such as `run=False` or `args`.
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
            seed_everything_default=False,  # trainer.seed does it
            auto_configure_optimizers=False,
            **{"subclass_mode_data": datamodule_class is None, **settings},
        )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return {"fit": {"module", "datamodule"}}

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


def _node(made: Any, arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{made.__module__}.{made.__qualname__}", "init_args": arguments}
