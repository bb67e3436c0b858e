"""Low-rank adapters beside a module's frozen layers, by peft."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.extras import check_installed
from fedhq_lightning.support.quiet import libraries_quiet


def add_lora(
    module: nn.Module, layers: Sequence[str], rank: int = 8, alpha: float = 16.0, dropout: float = 0.0
) -> None:
    """Freeze a module and set low-rank adapters beside some of its layers, in place; as they begin, they add nothing.

    A layer W becomes W + alpha / rank * B A: `base_layer` holds W, `lora_A.default` A, (rank, in), and
    `lora_B.default` B, (out, rank). Only A and B train, so they alone travel in a federated run; a lane quantizes all
    three as it does any linear layer. Any other method of peft works as well, called by the module itself in
    `__init__` or `configure_model`.

    Args:
        module: With `nn.Linear` layers.
        layers: The last parts of their names, such as `qkv` or `mlp.0`.
        rank: Rows of A and columns of B, >= 1.
        alpha: Of the factor, > 0.
        dropout: On what A is given, >= 0 and < 1.

    Raises:
        ConfigurationError: peft is not installed, no layer has such a name, or a number outside its bounds.

    Source: Hu et al. 2022, arXiv 2106.09685, equation 3.
    """
    if isinstance(layers, str) or not layers:
        raise ConfigurationError(f"LoRA layers {layers!r}: give a list of names, such as [qkv, projection]")
    if rank < 1:
        raise ConfigurationError(f"LoRA rank {rank}: must be 1 or more")
    if not 0 < alpha < float("inf"):
        raise ConfigurationError(f"LoRA alpha {alpha}: must be above 0")
    if not 0 <= dropout < 1:
        raise ConfigurationError(f"LoRA dropout {dropout}: must be 0 or more, and below 1")
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    for wanted in layers:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in linear):
            raise ConfigurationError(
                f"LoRA layers: no linear layer's name ends in {wanted!r}; there are {', '.join(linear[:8])}"
            )
    peft = _peft()
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(layers)), module
    )


def _peft() -> Any:
    """It imports transformers and accelerate, which takes seconds, and only those who ask for adapters wait."""
    check_installed("LoRA", "peft")
    # torch logs of parts of torchao that peft imports what nobody can act on.
    with libraries_quiet("torch.utils._pytree", "torchao", level=logging.ERROR):
        return import_module("peft")
