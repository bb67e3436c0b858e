"""What the reference classifiers share: loss, metrics, optimizer."""

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy


class Classifier(LightningModule):
    """Cross entropy, accuracy and plain SGD; subclasses add layers and `forward`.

    Logs `train_loss` per step and, per epoch, `val_loss`, `val_accuracy`, `test_loss`, `test_accuracy`.
    Batches are (inputs, labels): images, (batch, channels, height, width) float32, or rows of a table, and (batch,)
    int64.

    Args:
        num_classes: Classes, >= 2.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD, 0 <= momentum < 1.
        weight_decay: L2 penalty of SGD.
    """

    def __init__(
        self, num_classes: int = 10, lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.loss = nn.CrossEntropyLoss()
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch, a scalar."""
        inputs, labels = batch
        loss: Tensor = self.loss(self(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of one held-out batch."""
        self._evaluate(batch, "val", self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy of one test batch."""
        self._evaluate(batch, "test", self.test_accuracy)

    def predict_step(self, batch: Tensor | tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Class scores (batch, num_classes) of a batch of inputs, with labels or without."""
        scores: Tensor = self(batch if isinstance(batch, Tensor) else batch[0])
        return scores

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD over all parameters."""
        return self._optimizer(torch.optim.SGD, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def _optimizer(
        self, kind: type[torch.optim.SGD] | type[torch.optim.AdamW], **settings: Any
    ) -> torch.optim.Optimizer:
        """An optimizer over all parameters: on the CPU the fused one, which takes one kernel a parameter and step."""
        parameters = list(self.parameters())
        is_on_cpu = all(each.is_cpu for each in parameters)
        optimizer: torch.optim.Optimizer = kind(parameters, fused=is_on_cpu or None, **settings)
        # Lightning does not clip in mixed precision where an optimizer says that it unscales gradients itself, as torch
        # has all fused ones say; without a scaler, as on the CPU, there is nothing to unscale.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # torch sets it without a type
        return optimizer

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, accuracy: MulticlassAccuracy) -> None:
        inputs, labels = batch
        logits = self(inputs)
        accuracy(logits, labels)
        self.log(f"{stage}_loss", self.loss(logits, labels), on_step=False, on_epoch=True, batch_size=len(labels))
        self.log(f"{stage}_accuracy", accuracy, on_step=False, on_epoch=True)
