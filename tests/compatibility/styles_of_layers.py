"""LightningModules in the styles found in the wild: which layers they have, and when these are made."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .data import NUM_CLASSES, NUM_FEATURES, NUM_WORDS, Clients, as_model_inputs, images, sentences
from .styles import Plain, layers, style


@style("tied weights", lambda: Clients(sentences))
class Tied(Plain):
    """A language model whose last layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_WORDS, 8)
        self.hidden = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.output = nn.Linear(8, NUM_WORDS, bias=False)
        self.output.weight = self.embedding.weight
        del self.net

    def forward(self, words: Tensor) -> Tensor:
        scores: Tensor = self.output(self.hidden(self.embedding(words)))
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        words = batch[0]
        loss = F.cross_entropy(self(words[:, :-1]).flatten(0, 1), words[:, 1:].flatten())
        self.log("train_ppl", loss.exp())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        words = batch[0]
        self.log("val_ppl", F.cross_entropy(self(words[:, :-1]).flatten(0, 1), words[:, 1:].flatten()).exp())


@style("a frozen backbone, kept in evaluation mode", lambda: Clients(images))
class Frozen(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
        )
        self.backbone.requires_grad_(False)
        self.net = nn.Sequential(nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, NUM_CLASSES))

    def on_train_epoch_start(self) -> None:
        self.backbone.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(pictures)
        scores: Tensor = self.net(features)
        return scores

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=0.01)


@style("frozen by LightningModule.freeze")
class FrozenModule(Plain):
    """A LightningModule holds another one, which it froze."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = Plain()
        self.teacher.freeze()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        scores = self(inputs)
        distance = F.kl_div(scores.log_softmax(1), self.teacher(inputs).softmax(1), reduction="batchmean")
        return F.cross_entropy(scores, labels) + 0.1 * distance


@style("a LightningModule in another, which logs too", exports=False)
class Nested(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Plain()
        del self.net

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.inner(inputs)
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.inner.training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.inner.validation_step(batch, batch_idx)


@style("convolutions with BatchNorm and GroupNorm", lambda: Clients(images))
class Normed(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.GroupNorm(2, 4),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64, NUM_CLASSES),
        )


@style("batch statistics synchronized over processes, converted by Lightning's helper", lambda: Clients(images))
class SyncNormed(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)


@style("lazy layers, made by a call in __init__")
class LazyCalled(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(NUM_CLASSES))
        self.net(torch.zeros(2, NUM_FEATURES))


@style("lazy layers", builds=True)
class Lazy(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(16), nn.Dropout(0.1), nn.ReLU(), nn.LazyLinear(NUM_CLASSES))


@style("lazy layers, with example_input_array", builds=True)
class LazyWithExample(Plain):
    """Lightning's own Trainer materializes them when it summarizes the model; or the first batch does."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, NUM_FEATURES)
        self.net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(NUM_CLASSES))


@style("layers made in configure_model", builds=True)
class Configured(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = None  # type: ignore[assignment]  # as Lightning's documentation writes it

    def configure_model(self) -> None:
        if self.net is None:
            self.net = layers()


@style("layers made in setup", builds=True)
class SetUp(Plain):
    def __init__(self) -> None:
        super().__init__()
        del self.net

    def setup(self, stage: str) -> None:
        if stage == "fit" and not hasattr(self, "net"):
            self.net = layers(8)


@style("a submodule compiled with torch.compile")
class Compiled(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(layers(), backend="eager")  # type: ignore[assignment]  # it is called like one


@style("a submodule compiled in setup", builds=True)
class CompiledInSetup(Plain):
    """As the Lightning-Hydra template does."""

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.net = torch.compile(self.net, backend="eager")  # type: ignore[assignment]  # it is called like one


@style("LSTM and GRU", lambda: Clients(sentences))
class Recurrent(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_WORDS, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=True, dropout=0.1, bidirectional=True)
        self.gru = nn.GRU(16, 8, batch_first=True)
        self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, NUM_CLASSES))

    def forward(self, words: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(words))
        _, last = self.gru(hidden)
        scores: Tensor = self.net(last[-1])
        return scores


@style("nn.MultiheadAttention and a transformer encoder", lambda: Clients(sentences))
class Attends(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_WORDS, 8)
        self.positions = nn.Parameter(torch.randn(1, 6, 8) * 0.02)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.register_buffer("mask", torch.triu(torch.full((6, 6), float("-inf")), 1), persistent=False)
        self.net = nn.Sequential(nn.Linear(8, NUM_CLASSES))

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.embedding(words) + self.positions
        attended, _ = self.attention(hidden, hidden, hidden, need_weights=False, attn_mask=self.mask)
        scores: Tensor = self.net(self.encoder(attended).mean(1))
        return scores


@style("an autoencoder with transposed convolutions", lambda: Clients(images))
class Autoencoder(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8))
        self.decoder = nn.Sequential(
            nn.Linear(8, 64), nn.Unflatten(1, (4, 4, 4)), nn.ConvTranspose2d(4, 1, 4, 2, 1), nn.Sigmoid()
        )
        del self.net

    def forward(self, pictures: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.encoder(pictures))
        return decoded

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[0].sigmoid())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[0].sigmoid()))


@style("weight_norm and spectral_norm")
class NormedWeights(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(NUM_FEATURES, 16),
            nn.ReLU(),
            parametrizations.weight_norm(nn.Linear(16, 16)),
            nn.ReLU(),
            parametrizations.spectral_norm(nn.Linear(16, 16)),
            nn.ReLU(),
            nn.Linear(16, NUM_CLASSES),
        )


@style("spectral_norm of old")
class OldSpectralNorm(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(NUM_FEATURES, 16),
            nn.ReLU(),
            nn.utils.spectral_norm(nn.Linear(16, 16)),
            nn.ReLU(),
            nn.Linear(16, NUM_CLASSES),
        )


@style("containers of layers, one of them used twice")
class Containers(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(NUM_FEATURES, 8), nn.Linear(8, 8)])  # type: ignore[assignment]  # a list
        self.heads = nn.ModuleDict({"main": nn.Linear(8, NUM_CLASSES), "aux": nn.Linear(8, NUM_CLASSES)})
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(()))])
        self.options = nn.ParameterDict({"shift": nn.Parameter(torch.zeros(NUM_CLASSES))})
        self.unused = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.net[0](inputs).relu()
        for _ in range(2):
            hidden = self.net[1](hidden).relu() * self.gains[0] * self.gains[1]
        scores: Tensor = self.heads["main"](hidden) + self.heads["aux"](hidden) + self.options["shift"]
        return scores


@style("a state_dict without the frozen part, as adapters do", exports=True)
class Adapter(Plain):
    """What Lightning's `strict_loading` is for."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(NUM_FEATURES, NUM_FEATURES).requires_grad_(False)
        self.strict_loading = False

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.net(self.backbone(inputs))
        return scores

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "backbone" not in name}


@style("double precision")
class Double(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.double()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0].to(self.dtype), batch[1]


@style("forward(**batch), as Hugging Face models", lambda: Clients(sentences, as_model_inputs), exports=False)
class LikeHuggingFace(L.LightningModule):
    class Backbone(nn.Module):
        """Takes keywords, and gives the loss with the scores."""

        def __init__(self) -> None:
            super().__init__()
            self.embeddings = nn.Embedding(NUM_WORDS, 16, padding_idx=0)
            self.encoder = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 16))
            self.classifier = nn.Linear(16, NUM_CLASSES)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Any = None) -> Any:
            hidden = self.encoder(self.embeddings(input_ids))
            if attention_mask is not None:
                hidden = hidden * attention_mask.unsqueeze(-1)
            scores = self.classifier(hidden[:, 0] - hidden[:, -1])
            return {"loss": None if labels is None else F.cross_entropy(scores, labels), "logits": scores}

    def __init__(self, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = self.Backbone()

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = self(**batch)
        self.log("train_loss", outputs["loss"])
        return outputs

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        outputs = self(**batch)
        self.log("val_loss", outputs["loss"], prog_bar=True)
        return {"loss": outputs["loss"], "preds": outputs["logits"].argmax(1), "labels": batch["labels"]}

    def configure_optimizers(self) -> Any:
        no_decay = ["bias", "LayerNorm.weight"]
        named = list(self.model.named_parameters())
        groups = [
            {"params": [p for n, p in named if not any(each in n for each in no_decay)], "weight_decay": 0.01},
            {"params": [p for n, p in named if any(each in n for each in no_decay)], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.01, eps=1e-8)
        total = int(self.trainer.estimated_stepping_batches)
        warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.1, 1 - step / total))
        return [optimizer], [{"scheduler": warm_up, "interval": "step", "frequency": 1}]
