"""How long the modelled fleet would take. Devices change time only, never values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedhq_lightning.analysis.hardware import ClientTime, LayerCost, Precision, round_seconds
from fedhq_lightning.devices import DeviceProfile, Fleet
from fedhq_lightning.federated.client_trainer import FitOptions
from fedhq_lightning.types import ClientId, Mode


class VirtualClock:
    """Predicts each client's round: download, local fit, upload.

    Args:
        fleet: Device of every client.
        client_ids: All clients, in the order in which devices are dealt.
        costs: Layers of the model, measured on one batch.
        batch_size: Examples in that batch.
        num_examples: Examples per client.
        options: Length of a local fit.
        download_bytes: Payload down.
        upload_bytes: Payload up.
        precision: Format of the floating-point products.
    """

    def __init__(
        self,
        fleet: Fleet,
        client_ids: Sequence[ClientId],
        costs: Sequence[LayerCost],
        batch_size: int,
        num_examples: Callable[[ClientId], int],
        options: FitOptions,
        download_bytes: int,
        upload_bytes: int,
        precision: Precision = "fp32",
    ) -> None:
        self._fleet = fleet
        self._client_ids = client_ids
        self._positions = None if isinstance(client_ids, range) else {each: i for i, each in enumerate(client_ids)}
        self._costs = costs
        self._batch_size = batch_size
        self._num_examples = num_examples
        self._options = options
        self._download_bytes = download_bytes
        self._upload_bytes = upload_bytes
        self._precision = precision

    def position(self, client_id: ClientId) -> int:
        """The client's place among all clients."""
        return self._client_ids.index(client_id) if self._positions is None else self._positions[client_id]

    def profile(self, client_id: ClientId) -> DeviceProfile:
        """The client's device."""
        return self._fleet.profile(self.position(client_id))

    def time(self, client_id: ClientId, mode: Mode) -> ClientTime:
        """Virtual seconds of the client's round in `mode`."""
        num_batches, fullness = self._batches(client_id)
        return round_seconds(
            self.profile(client_id),
            mode,
            self._costs,
            num_batches,
            self._download_bytes,
            self._upload_bytes,
            batch_scale=fullness,
            precision=self._precision,
        )

    def seconds(self, client_id: ClientId, mode: Mode) -> float:
        """`time(...).total`."""
        return self.time(client_id, mode).total

    def _batches(self, client_id: ClientId) -> tuple[int, float]:
        """Batches of one local fit, and the mean share of a full batch that they hold."""
        examples = self._num_examples(client_id)
        per_epoch = -(-examples // self._batch_size)
        fullness = examples / (per_epoch * self._batch_size) if per_epoch else 0.0
        if self._options.local_steps is not None:
            return self._options.local_steps * self._options.accumulate_grad_batches, fullness
        return per_epoch * (self._options.local_epochs or 0), fullness
