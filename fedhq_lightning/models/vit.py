"""A small vision transformer."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models.classifier import Classifier


class ViT(Classifier):
    """Pre-norm vision transformer with mean pooling, trained with AdamW.

    Queries, keys and values are one nn.Linear, and so are quantized; nn.MultiheadAttention keeps bare parameters.

    Args:
        in_channels: Channels of the images.
        image_size: Height and width of the square images in pixels.
        num_classes: Classes, >= 2.
        patch_size: Height and width of one patch; must divide `image_size`.
        width: Numbers per token.
        depth: Transformer blocks.
        num_heads: Attention heads per block; must divide `width`.
        lr: Learning rate of AdamW.
        weight_decay: Decoupled weight decay of AdamW.

    Raises:
        ConfigurationError: `patch_size` does not divide `image_size`, or `num_heads` not `width`.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929; mean pooling after Beyer et al. 2022, arXiv 2205.01580.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        patch_size: int = 7,
        width: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(num_classes, lr=lr, weight_decay=weight_decay)
        if image_size % patch_size:
            raise ConfigurationError(f"ViT patch_size {patch_size}: must divide image_size {image_size}")
        if width % num_heads:
            raise ConfigurationError(f"ViT num_heads {num_heads}: must divide width {width}")
        num_tokens = (image_size // patch_size) ** 2
        self.patches = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_tokens, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, num_classes), of (batch, in_channels, image_size, image_size) images."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)  # (batch, tokens, width)
        tokens = tokens.contiguous()  # else every norm, forward and backward, copies what keeps the convolution's order
        tokens = self.norm(self.blocks(tokens + self.positions))
        logits: Tensor = self.classifier(tokens.mean(dim=1))
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all parameters."""
        return self._optimizer(torch.optim.AdamW, lr=self.lr, weight_decay=self.weight_decay)


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each behind a LayerNorm and beside a shortcut.

    Args:
        width: Numbers per token.
        num_heads: Attention heads; divides `width`.
        is_causal: Whether a token sees itself and those before it alone.
    """

    def __init__(self, width: int, num_heads: int, is_causal: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) of the same shape."""
        tokens = tokens + self._attention(self.norm1(tokens))
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed

    def _attention(self, tokens: Tensor) -> Tensor:
        # (batch, tokens, 3 * width) -> three of (batch, heads, tokens, width / heads)
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        heads = functional.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        projected: Tensor = self.projection(heads.transpose(1, 2).flatten(2))
        return projected
