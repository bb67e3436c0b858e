"""Learning rates over a local fit, and the round's factor on them."""

from typing import Any

import pytest
import torch

from ..federated.client_fits import SCHEDULERS, Scheduled, assert_alike, client_trainer, loader, weights
from ..small_federation import SmallModule, same_bits


class TestSchedulers:
    @pytest.mark.parametrize("every", [1, 2])
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_step_as_lightning_steps_them(self, name: str, every: int) -> None:
        assert_alike(Scheduled(name), local_epochs=3, accumulate_grad_batches=every)

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_the_rounds_factor_scales_every_rate(self, name: str) -> None:
        rates = {}
        for factor in (1.0, 0.25):
            module = Scheduled(name)
            # Without training the plateau's decisions are the same at any rate.
            module.net.requires_grad_("plateau" not in name)
            module.net[0].requires_grad_(True)
            client_trainer(module, local_epochs=3).fit(loader(), factor)
            rates[factor] = module.rates
        assert len(set(rates[1.0])) > 1, "the scheduler did nothing"
        assert rates[0.25] == pytest.approx([0.25 * rate for rate in rates[1.0]], rel=1e-9)

    def test_a_monitor_that_is_not_logged_changes_nothing(self) -> None:
        """Whether anybody logs it is asked before round 1."""

        class Unlogged(SmallModule):
            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

        plain, waiting = SmallModule(), Unlogged()
        client_trainer(plain, local_epochs=3).fit(loader())
        client_trainer(waiting, local_epochs=3).fit(loader())
        assert same_bits(weights(plain), weights(waiting))
