"""LightningModules in the styles found in the wild: how they optimize, which hooks and what of the trainer they use."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch.utilities import grad_norm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from .data import Clients, images
from .styles import Plain, layers, style


@style("a scheduler by dict, by step")
class StepScheduler(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        total = self.trainer.estimated_stepping_batches
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=int(total)),
                "interval": "step",
                "frequency": 1,
                "name": "one cycle",
            },
        }


@style("a scheduler by dict, every second epoch")
class EpochScheduler(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(self.trainer.max_epochs or 1, 1))
        return [optimizer], [{"scheduler": cosine, "interval": "epoch", "frequency": 2, "strict": True}]


@style("two schedulers, one a warm-up")
class WarmUp(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        warm_up = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
        return [optimizer], [{"scheduler": warm_up, "interval": "step"}, lr_scheduler.StepLR(optimizer, 1, 0.9)]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        schedulers = self.lr_schedulers()
        assert isinstance(schedulers, list)
        self.log("lr", schedulers[0].get_last_lr()[0])


@style("ReduceLROnPlateau on the training loss")
class PlateauOnTraining(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train_loss"}}


@style("ReduceLROnPlateau on what validation logs")
class PlateauOnValidation(Plain):
    """As torchgeo's tasks and darts' models have it."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=10)
        return [optimizer], {"scheduler": plateau, "monitor": "val_loss"}


@style("configure_callbacks")
class BringsCallbacks(Plain):
    def configure_callbacks(self) -> Any:
        from lightning.pytorch.callbacks import EarlyStopping

        return [EarlyStopping("val_loss")]


@style("parameter groups")
class ParameterGroups(Plain):
    def configure_optimizers(self) -> Any:
        first, *others = self.net
        return torch.optim.Adam(
            [{"params": first.parameters(), "lr": 1e-3}, {"params": nn.ModuleList(others).parameters()}], lr=1e-2
        )


@style("an optimizer_step of its own")
class OwnOptimizerStep(Plain):
    """The warm-up of Lightning's documentation."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * min(1.0, float(self.trainer.global_step + 1) / 5)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)


@style("an lr_scheduler_step of its own")
class OwnSchedulerStep(StepScheduler):
    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()


@style("gradients clipped in configure_gradient_clipping")
class OwnClipping(Plain):
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")


@style("hooks around the step")
class Hooks(Plain):
    """What moving averages, gradient logging and curricula hang on."""

    def on_fit_start(self) -> None:
        self.seen = 0

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.seen += 1

    def on_after_backward(self) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.nan_to_num_()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log_dict(grad_norm(self.net, norm_type=2))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.noise = 0.1 / (1 + self.global_step)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 1.0, batch[1]]

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        assert args[0]["loss"].requires_grad is False

    def on_validation_model_eval(self) -> None:
        self.eval()

    def on_validation_model_train(self) -> None:
        self.train()

    def on_train_end(self) -> None:
        assert self.seen


@style("training_step returns None for some batches")
class SkipsBatches(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else loss


@style("loss of half a batch, by batch alone")
class BatchAlone(Plain):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]  # Lightning looks at what it takes
        return super().training_step([each[::2] for each in batch], 0)

    def validation_step(self, batch: Any) -> Any:  # type: ignore[override]  # likewise
        return super().validation_step(batch, 0)


@style("looks at the trainer everywhere")
class LooksAtTrainer(Plain):
    def setup(self, stage: str) -> None:
        assert self.trainer.world_size == 1
        self.is_fast = bool(self.trainer.fast_dev_run)

    def configure_optimizers(self) -> Any:
        trainer = self.trainer
        steps = trainer.estimated_stepping_batches
        assert steps == trainer.num_training_batches * (trainer.max_epochs or 1) // trainer.accumulate_grad_batches
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [
            {"scheduler": lr_scheduler.PolynomialLR(optimizer, total_iters=int(steps)), "interval": "step"}
        ]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.is_global_zero and self.trainer.current_epoch == 0 and self.local_rank == 0:
            self.print("", end="")
        if self.trainer.is_last_batch and self.trainer.log_every_n_steps:
            self.log("progress", self.global_step / self.trainer.estimated_stepping_batches)
        assert self.trainer.state.stage is not None
        assert self.trainer.state.fn == "fit"
        return loss

    def on_train_epoch_end(self) -> None:
        assert not self.trainer.sanity_checking
        assert self.trainer.callback_metrics["train_loss"].isfinite()
        for group in self.trainer.optimizers[0].param_groups:
            self.log("lr", group["lr"])
        gathered = self.all_gather(torch.ones(2))
        assert gathered.sum() == 2
        self.trainer.strategy.barrier()

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking or self.trainer.fast_dev_run:
            return
        self.log("val_metric_loss", self.trainer.callback_metrics.get("val_loss", torch.tensor(0.0)))


@style("writes to the logger's experiment")
class WritesToLogger(Plain):
    def on_fit_start(self) -> None:
        if self.logger is not None:
            self.logger.log_hyperparams({"width": 16})

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.logger.experiment.add_scalar("loss", loss.item(), self.global_step)  # type: ignore[union-attr]
        self.logger.log_metrics({"loss": loss.item()}, step=self.global_step)  # type: ignore[union-attr]
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if batch_idx == 0 and hasattr(self.trainer, "datamodule") and hasattr(self.trainer.datamodule, "plot"):  # type: ignore[attr-defined]
            raise AssertionError("clients show no data")
        for logger in self.loggers:
            logger.log_metrics({"seen": float(batch_idx)})
        self.logger.experiment.log({"picture": batch[0][0]})  # type: ignore[union-attr]


@style("a moving average of its own, updated after each batch")
class MovingAverage(Plain):
    """As latent-diffusion and lightly do: a shadow network, and a scope in which it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.shadow = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("updates", torch.tensor(0))

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.updates += 1
        with torch.no_grad():
            for shadow, parameter in zip(self.shadow.parameters(), self.net.parameters(), strict=True):
                shadow.lerp_(parameter, 0.1)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))
        self.log("val_loss_ema", F.cross_entropy(self.shadow(batch[0]), batch[1]))
        return self.log_dict


@style("sampling in forward, and two losses", lambda: Clients(images), exports=False)
class Vae(Plain):
    """As the VAE of lightning-bolts: random numbers in the step, and log_dict of a comprehension."""

    def __init__(self, width: int = 8, kl_coeff: float = 0.1, **kwargs: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.fc_mu, self.fc_var = nn.Linear(16, width), nn.Linear(16, width)
        self.decoder = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 64), nn.Unflatten(1, (1, 8, 8)))
        del self.net

    def forward(self, x: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.fc_mu(self.encoder(x)))
        return decoded

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x, _ = batch
        hidden = self.encoder(x)
        mu, std = self.fc_mu(hidden), (self.fc_var(hidden) / 2).exp()
        p, q = torch.distributions.Normal(torch.zeros_like(mu), 1.0), torch.distributions.Normal(mu, std)
        recon = F.mse_loss(self.decoder(q.rsample()), x)
        kl = torch.distributions.kl_divergence(q, p).mean() * self.hparams["kl_coeff"]
        return recon + kl, {"recon_loss": recon, "kl": kl, "loss": recon + kl}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, logs = self.step(batch)
        self.log_dict({f"train_{name}": value for name, value in logs.items()}, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, logs = self.step(batch)
        self.log_dict({f"val_{name}": value for name, value in logs.items()})
        return loss


@style("gradients accumulated by the module, with toggled parts")
class Thaws(Plain):
    """Linear probing: what is trained is chosen in configure_optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(layers(), nn.ReLU(), nn.Linear(3, 3))

    def configure_optimizers(self) -> Any:
        self.net[0].requires_grad_(False)
        return torch.optim.LBFGS(self.net[2].parameters(), lr=0.1, max_iter=3)
