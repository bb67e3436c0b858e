"""How a Trainer of silos collects what is logged: as Lightning does, but what an epoch gives is agreed on first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.logger_connector.result import _METRICS
from typing_extensions import override

from fedhq_lightning.silos.silo_results import forget_computed, pending

if TYPE_CHECKING:
    _Base = _LoggerConnector
else:
    _Base = object  # the package of the Trainer says which


class SiloConnector(_Base):
    """A Trainer's connector once its strategy is that of silos.

    Values of an epoch are computed where all silos come by, and nowhere else: after the last batch, after the hooks of
    the epoch's end, and (see `SiloStrategy`) between these and the callbacks that act on a monitored value. Whoever
    reads them in between, on one silo perhaps, gets what this silo has so far and keeps nobody waiting.
    """

    @override
    def on_batch_end(self) -> None:
        """Count the batch's examples, too."""
        loop: Any = self.trainer._active_loop
        results: Any = self.trainer._results
        # A step that takes dataloader_iter fetches its batch itself.
        batch = getattr(loop._data_fetcher, "_batch", results.batch)
        self._strategy.count(results, batch, list(loop._combined_loader.flattened))
        super().on_batch_end()

    @override
    def epoch_end_reached(self) -> None:
        """Agree on what batches have logged."""
        super().epoch_end_reached()
        self._agree()

    @override
    def on_epoch_end(self) -> None:
        """Agree on what the hooks of the epoch's end have logged."""
        self._agree()
        super().on_epoch_end()

    @override
    def log_eval_end_metrics(self, metrics: Any) -> None:
        """See that callbacks act alike, too."""
        super().log_eval_end_metrics(metrics)
        self._strategy.compare_monitored(self.trainer, is_validation=True)

    @override
    def update_train_epoch_metrics(self) -> None:
        """Agree on stopping: this is the last thing in an epoch."""
        trainer = self.trainer
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False)
        super().update_train_epoch_metrics()

    @override
    def reset_results(self) -> None:
        """Begin to count anew, too."""
        super().reset_results()
        if self.trainer._results is not None:
            self._strategy.forget_examples(self.trainer._results)

    @property
    @override
    def metrics(self) -> _METRICS:
        """As Lightning's; what is not agreed on is computed of this silo alone and not kept."""
        asked = list(pending(self.trainer._results or {}).values())
        with self._strategy.asks(others=False):
            found = super().metrics
        for result in asked:
            if result._computed is not None:
                forget_computed(result)
        return found

    def _agree(self) -> None:
        if self.trainer._results is not None and not self.trainer.sanity_checking:
            self._strategy.average(self.trainer._results)

    @property
    def _strategy(self) -> Any:
        return self.trainer.strategy


def _silo_connector_on(connector: type) -> type[SiloConnector]:
    """The connector's class for the Trainers of one package."""
    return type("SiloConnector", (SiloConnector, connector), {"__module__": __name__})


def connect(trainer: pl.Trainer) -> None:
    """Make a trainer collect what is logged as one of silos does, from now on."""
    connector = cast(Any, trainer._logger_connector)
    if not isinstance(connector, SiloConnector):
        connector.__class__ = _silo_connector_on(type(connector))
