"""A client on a node of its own: it does what the server asks for, with its own data alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedhq_lightning.allocation import FixedAllocator
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import parts, setup
from fedhq_lightning.federated.beside import beside_of, model_of, named_beside
from fedhq_lightning.federated.payload import Header, encode
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.flower.messages import Answer, Order
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.risk.sensitivity import SensitivityMeasure
from fedhq_lightning.run.client_store import ClientStore
from fedhq_lightning.run.run_names import RunName
from fedhq_lightning.support.arithmetic import reproducible
from fedhq_lightning.support.collectives import Processes
from fedhq_lightning.support.text import first_line, shortened
from fedhq_lightning.types import ClientId, StateDict


class Node:
    """One client of a recipe.

    Args:
        name: The recipe's.
        text: Of the recipe.
        position: The client's place among `client_ids` of the recipe's data, from 0. Its alone are looked at.
        sensitivity: What the run's allocator wants measured.
        folder: Where the client keeps what it keeps from round to round of this run; None where it keeps nothing.

    Raises:
        ConfigurationError: The recipe cannot be run here; there is no such client; it keeps something, and has no
            folder.
    """

    def __init__(
        self, name: str, text: str, position: int, sensitivity: SensitivityMeasure | None, folder: Path | None
    ) -> None:
        resolved = resolve(name, text)
        with resolved.keys_named():
            trainer, module, datamodule = resolved.instantiate()
            settings = _of_one_client(trainer.settings, sensitivity)

            def own(client_ids: Sequence[ClientId]) -> list[ClientId]:
                if not 0 <= position < len(client_ids):
                    raise ConfigurationError(
                        f"partition-id {position}: the recipe's data are of {len(client_ids)} clients, so it must be 0 "
                        f"to {len(client_ids) - 1}; set it where the SuperNode is started, in --node-config"
                    )
                return [client_ids[position]]

            with reproducible(settings.threads, trainer.fabric.device):
                job = setup.set_up(settings, trainer.fabric, module, datamodule, clients_of=own)
        if folder is None and parts.keep_state(settings, job):
            raise ConfigurationError("its client keeps what the next round needs, and the order does not name the run")
        alone = Processes(None)
        evaluator = parts.evaluator_of(settings, trainer.fabric, job.template, alone, job.datamodule)
        self.client_id: ClientId = job.sampler.with_data()[0]
        self._job = job
        self._saved: Sequence[int] = ()
        self._store = None if folder is None else ClientStore(folder, lambda: self._saved)
        self._fitter = parts.fitter_of(settings, trainer.fabric, job, self._store)
        self._statistics = parts.statistics_of(settings, job, evaluator, alone, None)
        self._threads, self._device = settings.threads, trainer.fabric.device

    def answer(self, order: Order, payload: bytes) -> tuple[Answer, bytes]:
        """Do what is asked for.

        Args:
            order: What.
            payload: The model to do it with.

        Returns:
            What to say, and what goes along.

        Raises:
            PayloadError: The payload is damaged, or of another model.
            ConfigurationError: The order is another client's, or of another recipe.
        """
        if order.client_id != self.client_id:
            raise ConfigurationError(f"this node holds client {self.client_id!r}, and was asked as {order.client_id!r}")
        like = self._job.initial_state()
        if order.fixed != self._job.link.fixed_digest(like):
            raise ConfigurationError(
                "what no round changes of the model (frozen tensors, whole numbers) is not what the server holds; give "
                "both the same recipe, packages and files"
            )
        with reproducible(self._threads, self._device):
            if order.work == "statistics":
                return self._told(order, payload, like)
            return self._trained(order, payload, like)

    def _trained(self, order: Order, payload: bytes, like: StateDict) -> tuple[Answer, bytes]:
        received = self._job.link.arrived(payload, like | named_beside(self._job.beside), order.round)
        self._saved = order.saved
        if self._store is not None:
            # Later are rounds that a resumed run has given up, and those to which the answer came too late.
            self._store.forget_after(order.last)
        update = self._fitter.fit(
            order.round,
            order.client_id,
            order.mode,
            model_of(received),
            len(payload),
            order.learning_rate_scale,
            deadline=None,
            work=order.share,
            beside=beside_of(received),
        )
        return Answer(update.record), update.payload

    def _told(self, order: Order, payload: bytes, like: StateDict) -> tuple[Answer, bytes]:
        assert self._statistics is not None
        received = self._job.link.arrived(payload, like, order.round, is_exact=True)
        moments = self._statistics.moments(order.client_id, order.round, received)
        if moments is None:
            return Answer(failure="its batch tells no batch statistics"), b""
        in_order = {name: moments[name] for name in sorted(moments)}
        return Answer(), encode(in_order, {}, Header("statistics", order.round, order.client_id))


class NodeOfRecipe:
    """Answers in text, whatever happens; the client is set up with the first order.

    Args:
        name: The recipe's.
        text: Of the recipe.
        position: See `Node`.
        folder: Where clients keep what they keep from round to round, in a folder for each run.
    """

    def __init__(self, name: str, text: str, position: int, folder: Path) -> None:
        self._given = name, text, position
        self._folder = folder
        self._run = ""
        self._node: Node | None = None

    def answer(self, text: str, payload: bytes) -> tuple[str, bytes]:
        """Do what is asked for.

        Args:
            text: JSON of an `Order`.
            payload: The model.

        Returns:
            JSON of an `Answer`, and what goes along.
        """
        try:
            order = Order.of_text(text)
            if self._node is None or order.run != self._run:
                self._node = Node(*self._given, order.sensitivity, self._folder_of(order.run))
                self._run = order.run
            answer, made = self._node.answer(order, payload)
        except Exception as error:  # whatever it is, the server is to learn why
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {first_line(error)}"
            answer, made = Answer(failure=shortened(reason)), b""
        return answer.to_text(), made

    def _folder_of(self, run: str) -> Path | None:
        """Where the client of this node keeps what it keeps in a run, if it does."""
        if not run:
            return None
        parts_of_name = RunName.of(run)
        if parts_of_name is None or parts_of_name.unique != run:
            raise ConfigurationError(f"{shortened(run)!r} is no name of a run")
        return self._folder / run / str(self._given[2])


def _of_one_client(settings: RunSettings, sensitivity: SensitivityMeasure | None) -> RunSettings:
    """Settings of a run of one client, which plans nothing."""
    told = FixedAllocator("fp")
    told.wanted_sensitivity = sensitivity
    return replace(
        settings,
        allocator=told,
        clients_per_round=None,
        fleet="uniform",
        min_clients=1,
        robust_rule=None,
        round_deadline=None,
        measured_seconds=False,
        evaluate_clients=False,
        # What the client's code raises goes into its answer; whether that ends the run, the server decides.
        on_client_error="retry" if settings.on_client_error == "retry" else "quarantine",
    )
