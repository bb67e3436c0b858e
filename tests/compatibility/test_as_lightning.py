"""On one client a module in any style trains to the same bits, and logs the same, as under Lightning's own Trainer."""

from typing import Any

import pytest
import torch

from fedhq_lightning.local.client_trainer import ClientTrainer
from fedhq_lightning.local.module_checks import copied
from fedhq_lightning.local.template import set_up_template
from fedhq_lightning.types import FitOptions

from ..beside_lightning import lightning_fit, lightning_validate
from ..small_federation import same_bits
from . import styles_of_layers, styles_of_training  # noqa: F401  # they enter their styles
from .runs import LEFT_OUT, seeded
from .styles import STYLES

pytestmark = LEFT_OUT
# Lightning is run without a logger here, without validation in a fit, and sets the reference up a second time; of a
# nested module it takes no log.
WITHOUT = {
    "writes to the logger's experiment",
    "configure_callbacks",
    "ReduceLROnPlateau on what validation logs",
    "a LightningModule in another, which logs too",
    "a submodule compiled in setup",
}


def weights(module: Any) -> dict[str, Any]:
    return {name: value.detach() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", [name for name in STYLES if name not in WITHOUT])
def test_trains_and_logs_the_same(name: str) -> None:
    style, options = STYLES[name], FitOptions(local_epochs=2)
    data = style.data()
    loader, held_out = data.train_dataloader(0), data.val_dataloader()
    held_out = [] if "no validation_step" in name else held_out if isinstance(held_out, list) else [held_out]

    mine = seeded(lambda: set_up_template(style.module(), options, lambda: next(iter(loader))))
    trainer = ClientTrainer(mine, options, torch.device("cpu"))
    torch.manual_seed(2)
    _, trained = trainer.fit(loader)
    trainer.detach()
    torch.manual_seed(3)
    logged = ClientTrainer(mine, options, torch.device("cpu")).evaluate(held_out) if held_out else {}

    reference = seeded(lambda: copied(set_up_template(style.module(), options, lambda: next(iter(loader)))))
    torch.manual_seed(2)
    fitted = lightning_fit(reference, loader, max_epochs=2)
    torch.manual_seed(3)
    wanted = lightning_validate(reference, held_out) if held_out else {}

    assert same_bits(weights(mine), weights(reference))
    assert logged == pytest.approx(without_steps(wanted), rel=1e-5, abs=1e-7)
    assert trained.keys() == without_steps(fitted.callback_metrics).keys()


def without_steps(metrics: Any) -> dict[str, float]:
    """Lightning's callback_metrics also hold the last step's values."""
    return {name: float(value) for name, value in metrics.items() if not name.endswith("_step")}
