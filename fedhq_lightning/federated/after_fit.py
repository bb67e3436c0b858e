"""What a trainer does with a module beside training it: validate, test, predict. `FederatedTrainer` inherits it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.fabric import Fabric
from torch import Tensor

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import parts, setup
from fedhq_lightning.federated.lightning_habits import LightningAttributes, callback_metrics, with_lightning_names
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.local import prediction
from fedhq_lightning.local.data_hooks import prepared
from fedhq_lightning.local.evaluation import as_loaders
from fedhq_lightning.local.module_checks import check_is_lightning_module
from fedhq_lightning.local.template import set_up_template
from fedhq_lightning.run.lightning_checkpoint import weights_of
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.run.round_checkpoint import difference
from fedhq_lightning.support.arithmetic import reproducible
from fedhq_lightning.support.process_group import launch
from fedhq_lightning.support.tensors import same_values
from fedhq_lightning.support.views import users_view
from fedhq_lightning.types import StateDict


class AfterFit(LightningAttributes):
    """Evaluates and predicts, by default with the module and the data of the last `fit`.

    Attributes:
        settings: Of the trainer.
        fabric: Where modules run.
        run_dir: Of the last `fit`.
    """

    settings: RunSettings
    fabric: Fabric
    run_dir: Path
    _fitted: L.LightningModule | None = None
    _fitted_state: StateDict | None = None
    _fitted_on: L.LightningDataModule | None = None
    _records: Sequence[RoundRecord] = ()
    _evaluated: dict[str, float] | None = None

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """What was logged last, by the rounds or by `validate` or `test`; plain names are the float32 model's."""
        if self._evaluated is not None:
            return callback_metrics(self._evaluated)
        return callback_metrics({name: value for record in self._records for name, value in record.metrics.items()})

    @with_lightning_names({"model": "module"}, ignored=("verbose", "weights_only"))
    def validate(
        self,
        module: L.LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> dict[str, float]:
        """Metrics of a module on the held-out batches, as `fp/NAME` and `quantized/NAME`.

        Args:
            module: Its weights are used; default: the module of the last `fit`, which holds the deployed round's.
            dataloaders: A loader, several in a list or dict, or a data module; default: that of the last `fit`.
            datamodule: The same.
            ckpt_path: Weights to take instead: "best" or "last" of the run, a checkpoint, or a run directory.

        Raises:
            ConfigurationError: No module, no data, no such step, or no such checkpoint.
        """
        return self._evaluate_once("validation", module, dataloaders, datamodule, ckpt_path)

    @with_lightning_names({"model": "module"}, ignored=("verbose", "weights_only"))
    def test(
        self,
        module: L.LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> dict[str, float]:
        """Metrics of a module on the test batches, from its `test_step`; otherwise as `validate`."""
        return self._evaluate_once("test", module, dataloaders, datamodule, ckpt_path)

    @with_lightning_names(
        {"model": "module", "dataloaders": "data", "datamodule": "data"}, ignored=("return_predictions", "weights_only")
    )
    def predict(
        self,
        module: L.LightningModule | None = None,
        data: Any = None,
        quantized: bool = True,
        ckpt_path: str | Path | None = None,
    ) -> list[Any]:
        """What `predict_step` returns for every batch, on the CPU, as Lightning's `Trainer.predict` gives it.

        Args:
            module: Its weights are used; default: the module of the last `fit`, which holds the deployed round's.
            data: A loader, several (then one list each), or a data module with `predict_dataloader`.
            quantized: Predict with the module on the scheme's grid, which is what is deployed, bit for bit; False: with
                its float32 weights, as without a scheme.
            ckpt_path: As for `validate`.

        Raises:
            ConfigurationError: No module, no data, or a module that does not take these batches.
        """
        settings, fabric = self.settings, self.fabric
        template, weights = self._weighed("predict", module, ckpt_path)
        evaluator = parts.evaluator_of(settings, fabric, template, launch(fabric))
        model = evaluator.deployed if quantized and settings.scheme is not None else evaluator.model
        with reproducible(settings.threads, fabric.device), prepared(data, "predict") as hooked:
            loaders = prediction.loaders_of(data)
            return prediction.predict(model(weights), loaders, settings.fit_options, fabric.device, hooked)

    def _evaluate_once(
        self,
        stage: Literal["validation", "test"],
        module: L.LightningModule | None,
        dataloaders: Any,
        datamodule: L.LightningDataModule | None,
        ckpt_path: str | Path | None,
    ) -> dict[str, float]:
        settings, fabric = self.settings, self.fabric
        template, weights = self._weighed(stage, module, ckpt_path)
        data = setup.held_out_data(template, stage, dataloaders, datamodule, self._fitted_on)
        with (
            reproducible(settings.threads, fabric.device),
            prepared(data, "validate" if stage == "validation" else "test") as hooked,
        ):
            evaluator = parts.evaluator_of(settings, fabric, template, launch(fabric), hooked)
            if hooked is not None:
                data = hooked.val_dataloader() if stage == "validation" else hooked.test_dataloader()
            self._evaluated = evaluator.evaluate(weights, as_loaders(data), stage)
        return dict(self._evaluated)

    def _weighed(
        self, stage: str, module: L.LightningModule | None, ckpt_path: str | Path | None
    ) -> tuple[L.LightningModule, StateDict]:
        """A module set up, by default that of the last `fit`, and the weights that it shall have."""
        module = self._fitted if module is None else module
        if module is None:
            raise ConfigurationError(f"{stage}: no module; give one, or call fit before")
        check_is_lightning_module(module)
        template = set_up_template(module, self.settings.fit_options, datamodule=self._fitted_on)
        if ckpt_path is not None:
            weights = weights_of(ckpt_path, self.run_dir)
            found = difference(users_view(weights), template.state_dict(), in_types=False)
            if found is not None and template.strict_loading:
                raise ConfigurationError(
                    f"ckpt_path {str(ckpt_path)!r}: holds other weights than those of {type(module).__name__}: "
                    f"{found}; give a checkpoint of this module"
                )
            return template, weights
        return template, self._with_statistics(template.state_dict())

    def _with_statistics(self, weights: StateDict) -> StateDict:
        """Weights that are as the last `fit` left them have a deployed view of their own, others have none."""
        fitted = self._fitted_state
        if fitted is None or users_view(fitted).keys() != weights.keys():
            return weights
        is_as_left = all(same_values(value.cpu(), fitted[name]) for name, value in weights.items())
        return fitted if is_as_left else weights
