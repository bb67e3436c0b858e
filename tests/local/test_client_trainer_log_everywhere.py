"""Whatever hook logs, a client's trainer finds what Lightning's own Trainer finds under the same name."""

from typing import Any

import pytest
from torch.utils.data import DataLoader

from fedhq_lightning.errors import ConfigurationError

from ..beside_lightning import lightning_trainer, lightning_validate, without_advice
from ..federated.client_fits import client_trainer
from ..logs_everywhere import HOOKS, KINDS, LogsEverywhere, loaders


@pytest.fixture(scope="module")
def trained() -> tuple[dict[str, float], dict[str, float]]:
    """What ours and what Lightning's reports of two epochs."""
    (loader,) = loaders([27], 3)
    _, mine = client_trainer(LogsEverywhere(), local_epochs=2).fit(loader)
    reference = lightning_trainer(max_epochs=2)
    with without_advice():
        reference.fit(LogsEverywhere(), loader)
    return mine, {name: float(value) for name, value in reference.callback_metrics.items()}


def evaluated(stage: str, sizes: list[int]) -> tuple[dict[str, float], dict[str, float]]:
    held_out: list[DataLoader[object]] = loaders(sizes, 100)
    mine = client_trainer(LogsEverywhere()).evaluate(held_out, stage)
    reference = lightning_trainer()
    with without_advice():
        (reference.validate if stage == "validation" else reference.test)(LogsEverywhere(), held_out, verbose=False)
    return mine, {name: float(value) for name, value in reference.callback_metrics.items()}


def differing(mine: dict[str, float], wanted: dict[str, float]) -> dict[str, tuple[float | None, float | None]]:
    pairs = {name: (mine.get(name), wanted.get(name)) for name in mine.keys() | wanted.keys()}
    return {name: pair for name, pair in pairs.items() if None in pair or pair[0] != pytest.approx(pair[1], rel=1e-6)}


def test_training(trained: tuple[dict[str, float], dict[str, float]]) -> None:
    mine, wanted = trained
    assert mine.keys() >= {f"module/{hook}/{kind}" for hook in HOOKS["train"] for kind in KINDS}
    # Lightning keeps the last batch's; a client reports what its whole epoch was like.
    assert set(differing(mine, wanted)) == {"module/step_alone"}


@pytest.mark.parametrize("stage", ["validation", "test"])
@pytest.mark.parametrize("sizes", [[27], [19, 5]])
def test_evaluation(stage: str, sizes: list[int]) -> None:
    mine, wanted = evaluated(stage, sizes)
    assert {name.split("/")[1] for name in mine} == set(HOOKS[stage])
    assert differing(mine, wanted) == {}


def test_two_hooks_that_log_one_name() -> None:
    """The values of one are not mixed with those of the other."""

    class Twice(LogsEverywhere):
        def say(self, who: str, hook: str) -> None:
            if hook in ("on_validation_batch_end", "validation_step", "on_validation_epoch_end"):
                self.calls += 1
                self.log("twice", float(self.calls))

    held_out = loaders([27], 100)
    assert client_trainer(Twice()).evaluate(held_out) == lightning_validate(Twice(), held_out) == {"twice": 9.0}


def test_one_name_of_two_loaders_is_refused() -> None:
    class Mixes(LogsEverywhere):
        def say(self, who: str, hook: str) -> None:
            if hook == "validation_step":
                self.log("mixed", 1.0, add_dataloader_idx=False)

    with pytest.raises(ConfigurationError, match=r"self.log\('mixed', ..., add_dataloader_idx=False\) of two loaders"):
        client_trainer(Mixes()).evaluate(loaders([9, 9], 100))


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_start", "on_after_batch_transfer"])
def test_hooks_that_may_not_log_are_refused(hook: str) -> None:
    """What they logged would be lost, or mixed with something else."""

    def say(self: LogsEverywhere, batch: Any = None, *_: Any) -> Any:
        self.log("lost", 1.0)
        return batch

    module = type("Loses", (LogsEverywhere,), {hook: say})()
    with pytest.raises(ConfigurationError, match=f"self.log\\('lost', ...\\) in {hook}: You can't"):
        client_trainer(module).fit(loaders([9], 3)[0])
