"""What decides a run's bits, as plain values: compared with a resumed run's and with other processes', and logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

from fedhq_lightning.data import FederatedDataModule
from fedhq_lightning.devices import Fleet
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.quantize.compilation import has_compiler
from fedhq_lightning.quantize.native.lanes import native_level
from fedhq_lightning.run.description import Recipe, describe
from fedhq_lightning.support.yaml_text import parse_yaml


def describe_run(
    settings: RunSettings,
    asked: Mapping[str, Any],
    module: L.LightningModule,
    datamodule: FederatedDataModule,
    device_type: str,
    recipe: Recipe | None,
) -> dict[str, Any]:
    """Everything that decides them.

    Args:
        settings: Of the run.
        asked: What the trainer was given, described.
        module: The user's.
        datamodule: The clients' data.
        device_type: Where modules run.
        recipe: That the run was started from, or None.
    """
    described = {"trainer": asked, "model": describe(module), "data": describe(datamodule)}
    described["device"] = device_type
    described["virtual_fleet"] = f"content {Fleet.resolve(settings.fleet, settings.seed).digest}"
    if settings.scheme is not None:
        described["compiled_kernels"] = has_compiler()
        described["native_kernels"] = device_type == "cpu" and native_level() is not None
    if recipe is not None:
        described["recipe"] = parse_yaml(recipe.text)
    return described
