"""A small transformer that tells each next character, whole or by low-rank adapters on a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models.classifier import Classifier
from fedhq_lightning.models.lora import add_lora
from fedhq_lightning.models.vit import TransformerBlock
from fedhq_lightning.support.paths import expand_path

_WEIGHTS = "weights.safetensors"
_EMBEDDED = 0.1
"""Standard deviation at first: learned faster than 0.02 did, and far faster than 1."""


class CharTransformer(Classifier):
    """Pre-norm transformer with causal attention, trained with AdamW. A character counts as an example.

    Args:
        num_classes: Characters that are told apart, >= 2; those of `CharacterDataModule` by default.
        length: Most characters in a window.
        width: Numbers per character.
        depth: Transformer blocks.
        num_heads: Attention heads per block; must divide `width`.
        lr: Learning rate of AdamW.
        weight_decay: Decoupled weight decay of AdamW.
        base: Weights to begin with, of the same shape: a run, its `model/` folder, a `weights.safetensors`, or a
            folder of runs, of which the newest that has a model is taken. None: random ones. Read before round 1.
        lora_rank: Rank of low-rank adapters beside layers of the base, which alone train then; None trains all.
        lora_alpha: See `add_lora`.
        lora_layers: See `add_lora`.

    Raises:
        ConfigurationError: `num_heads` does not divide `width`. In `configure_model`: a base that is not there or has
            other shapes, or see `add_lora`.

    Source: Vaswani et al. 2017; for the adapters Hu et al. 2022, arXiv 2106.09685.
    """

    def __init__(
        self,
        num_classes: int = 96,
        length: int = 64,
        width: int = 96,
        depth: int = 2,
        num_heads: int = 4,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        base: str | Path | None = None,
        lora_rank: int | None = None,
        lora_alpha: float = 16.0,
        lora_layers: Sequence[str] = ("qkv", "projection", "mlp.0", "mlp.2"),
    ) -> None:
        super().__init__(num_classes, lr=lr, weight_decay=weight_decay)
        if width % num_heads:
            raise ConfigurationError(f"CharTransformer num_heads {num_heads}: must divide width {width}")
        self.base = None if base is None else expand_path(base, "base")
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_layers = tuple(lora_layers)
        self._is_built = False
        self.characters = nn.Embedding(num_classes, width)
        # As large as each other: beside torch's own embedding, of 1, places would long go unseen.
        nn.init.normal_(self.characters.weight, std=_EMBEDDED)
        self.positions = nn.Parameter(_EMBEDDED * torch.randn(1, length, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, num_heads, is_causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)

    def configure_model(self) -> None:
        """Take the base's weights, and set adapters beside its layers; once."""
        if self._is_built:
            return
        self._is_built = True
        if self.base is not None:
            self._load_base(self.base)
        if self.lora_rank is not None:
            add_lora(self, self.lora_layers, self.lora_rank, self.lora_alpha)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits (batch, num_classes, length), of each next character, of (batch, length) int64 characters."""
        tokens = self.characters(characters) + self.positions[:, : characters.shape[1]]
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)))
        return logits.transpose(1, 2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all parameters."""
        return self._optimizer(torch.optim.AdamW, lr=self.lr, weight_decay=self.weight_decay)

    def _load_base(self, base: Path) -> None:
        state = safetensors.torch.load_file(_weights_of(base))
        own = self.state_dict()
        odd = [name for name in own.keys() | state.keys() if _shape(own, name) != _shape(state, name)]
        if odd:
            first = min(odd)
            raise ConfigurationError(
                f"model.base {str(base)!r}: another model's weights: {first} is {_shape(state, first)} there and "
                f"{_shape(own, first)} here ({len(odd)} differ); give the width, depth and length that it was trained "
                "with, and a base without adapters"
            )
        self.load_state_dict(state)


def _weights_of(base: Path) -> Path:
    """The file of a base's weights."""
    if base.is_file():
        return base
    for there in (base, base / "model"):
        if (there / _WEIGHTS).is_file():
            return there / _WEIGHTS
    runs = sorted(base.glob(f"*/model/{_WEIGHTS}"), key=lambda file: file.parents[1].name)  # names begin with the time
    if not runs:
        raise ConfigurationError(
            f"model.base {str(base)!r}: no {_WEIGHTS} there; give a run, its model/ folder or a folder of runs, such "
            "as runs/shakespeare after: fedhq run shakespeare"
        )
    return runs[-1]


def _shape(state: dict[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "missing"
