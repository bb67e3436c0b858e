"""A deployed model as it is handed to those who write files of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fedhq_lightning.deploy.pixels import PIXELS, Pixels
from fedhq_lightning.quantize.conversion import copy_without_trainer


@dataclass(frozen=True)
class ModelToWrite:
    """What a file is made of.

    Attributes:
        converted: As `convert` returns it, on the CPU.
        example_args: Positional arguments of one forward call, on the CPU. The first dimension of every tensor is the
            batch, which may be of any size in the file. Their values are compared, not stored.
        name: What the model is called, by custom its class.
        scheme: Of the conversion, as text.
        metrics: Of the deployed model on held-out data, by name.
        inputs: What inputs and outputs stand for, as `FederatedDataModule.model_inputs` tells it; None if it does not.
        pixels: What `converted` and `example_args` take and are, where that is not what `forward` takes; see `taking`.
        made: What those who write files keep from one call to the next, each under its own name.
    """

    converted: nn.Module
    example_args: tuple[Any, ...]
    name: str
    scheme: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    inputs: Mapping[str, Any] | None = None
    pixels: Pixels | None = None
    made: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def facts(self) -> dict[str, str]:
        """What a file tells of the model, by name: texts as they are, the rest as JSON."""
        told = {"model": self.name, "scheme": self.scheme}
        for name, value in (("metrics", self.metrics), ("inputs", self.inputs)):
            if value:
                told[name] = json.dumps(dict(value))
        return told | ({} if self.pixels is None else {"takes": PIXELS})

    def taking(self, pixels: Pixels) -> ModelToWrite:
        """The same model with pixels for inputs; `converted` itself is left as it is."""
        (inputs,), converted = self.example_args, copy_without_trainer(self.converted)
        pixels.put_before(converted, inputs.dim())
        return replace(self, converted=converted, example_args=(pixels.of(inputs),), pixels=pixels)


def describe_inputs(example_args: tuple[Any, ...]) -> str:
    """Dtypes and shapes of the tensors among a forward's arguments, with "batch" for the first dimension."""
    tensors = [leaf for leaf in pytree.tree_leaves(example_args) if isinstance(leaf, Tensor)]
    return ", ".join(
        f"{str(each.dtype).removeprefix('torch.')} of shape ({', '.join(['batch', *map(str, each.shape[1:])])})"
        if each.dim()
        else f"{str(each.dtype).removeprefix('torch.')} scalar"
        for each in tensors
    )
