"""Tables: the layer that takes raw rows, and a multilayer perceptron behind it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models.classifier import Classifier

_STATE = ("form", "source", "category", "mean", "scale")


class TabularInput(nn.Module):
    """The first layer of a module for tables: raw rows in, standardized features out.

    A number becomes its distance from the mean in standard deviations, 0 where it is missing; a category becomes a one
    among zeros, all zeros where it is missing or unknown. What that takes is part of the state, so of the deployed
    model too; it is the server's, goes to each client once, and no client sends it back.

    Where the columns come from is `fill`, called in `setup` of your module; or they are loaded with the weights.

    Attributes:
        form: A checksum of names, categories and classes, () int64; None before the columns are known, like the others.
        source: Column of each feature, (num_features,) int64.
        category: Of each feature the category that makes it 1, (num_features,) int64; -1 where it is a number.
        mean: Of each feature, (num_features,) float32, in the units of its column; 0 of categories.
        scale: Standard deviation of each feature, (num_features,) float32, > 0; 1 of categories.
    """

    form: Tensor | None
    source: Tensor | None
    category: Tensor | None
    mean: nn.Parameter | None
    scale: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        for name in ("form", "source", "category"):
            self.register_buffer(name, None)
        for name in ("mean", "scale"):
            self.register_parameter(name, None)

    def fill(self, inputs: Mapping[str, Any] | None) -> None:
        """Take the columns that a data module tells. Those loaded with weights stay as they are.

        Args:
            inputs: What `model_inputs` of the data module gives.

        Raises:
            ConfigurationError: It tells none, or other columns, categories or classes than those of the weights.
        """
        if inputs is None or "columns" not in inputs:
            raise ConfigurationError("the data tell no columns of a table; give a CSVDataModule")
        form = _checksum(inputs)
        if self.form is not None:
            self._check_form(form)
            return
        source, category, mean, scale = list[int](), list[int](), list[float](), list[float]()
        for position, column in enumerate(inputs["columns"]):
            categories = column.get("categories")
            features = [-1] if categories is None else range(len(categories))
            category += features
            source += [position] * len(features)
            mean += [column.get("mean", 0.0)] * len(features)
            scale += [column.get("scale", 1.0)] * len(features)
        self.form, self.source, self.category = torch.tensor(form), torch.tensor(source), torch.tensor(category)
        self.mean, self.scale = _frozen(torch.tensor(mean)), _frozen(torch.tensor(scale))

    def forward(self, rows: Tensor) -> Tensor:
        """Features, (batch, num_features) float32.

        Args:
            rows: (batch, num_columns) float32, NaN where a value is missing.

        Raises:
            ConfigurationError: The columns are not known yet.
        """
        if self.source is None or self.category is None or self.mean is None or self.scale is None:
            raise ConfigurationError(
                "TabularInput: the columns are not known yet; call its fill in setup, or load weights"
            )
        values = rows.index_select(1, self.source)
        numbers = torch.where(values.isnan(), 0.0, (values - self.mean) / self.scale)
        return torch.where(self.category < 0, numbers, (values == self.category).to(rows.dtype))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        """Load also what this layer has no place for yet."""
        found = {name: state_dict[prefix + name] for name in _STATE if prefix + name in state_dict}
        if self.form is None:
            for name, value in found.items():
                is_parameter = name in self._parameters
                setattr(self, name, _frozen(torch.empty_like(value)) if is_parameter else torch.empty_like(value))
        elif "form" in found:
            self._check_form(int(found["form"]))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _check_form(self, other: int) -> None:
        if self.form is not None and int(self.form) != other:
            raise ConfigurationError(
                "the weights are those of a table with other columns, categories or classes than the data have; give "
                "the data module the inputs.json that lies beside the weights as inputs_file"
            )


class TabularMLP(Classifier):
    """Linear layers with ReLU between them, over the standardized columns of a `CSVDataModule`.

    Args:
        num_classes: Classes, >= 2; as many as the label's column has.
        hidden_sizes: Width of each hidden layer; at least one.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.

    Raises:
        ConfigurationError: No hidden layer. On `setup`: the data tell no columns, or another number of classes.
    """

    def __init__(
        self,
        num_classes: int = 2,
        hidden_sizes: Sequence[int] = (64, 32),
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(num_classes, lr, momentum, weight_decay)
        if not hidden_sizes:
            raise ConfigurationError("TabularMLP hidden_sizes []: give the width of one hidden layer at least")
        self.num_classes = num_classes
        self.input = TabularInput()
        layers: list[nn.Module] = [nn.LazyLinear(hidden_sizes[0])]  # how many features there are the data tell
        for size, next_size in pairwise([*hidden_sizes, num_classes]):
            layers += [nn.ReLU(), nn.Linear(size, next_size)]
        self.layers = nn.Sequential(*layers)

    def setup(self, stage: str) -> None:
        """Take the columns from the data module, where there is one."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None and self.input.form is not None:
            return
        tell = getattr(datamodule, "model_inputs", lambda: None)
        inputs = tell() or {}
        self.input.fill(inputs)
        if len(inputs["classes"]) != self.num_classes:
            raise ConfigurationError(
                f"TabularMLP num_classes {self.num_classes}: {inputs['label']!r} has {len(inputs['classes'])} classes, "
                f"{', '.join(inputs['classes'][:20])}; set num_classes to {len(inputs['classes'])}"
            )

    def forward(self, rows: Tensor) -> Tensor:
        """Logits, (batch, num_classes), of raw rows, (batch, num_columns) float32, NaN where a value is missing."""
        logits: Tensor = self.layers(self.input(rows))
        return logits


def _checksum(inputs: Mapping[str, Any]) -> int:
    columns = [[each["name"], each.get("categories")] for each in inputs["columns"]]
    return zlib.crc32(json.dumps([columns, inputs["classes"]]).encode())


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
