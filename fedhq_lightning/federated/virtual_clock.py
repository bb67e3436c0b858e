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
        batch_size: Examples in that batch, a full one.
        num_examples: Examples per client.
        options: Length of a local fit.
        download_bytes: Payload down.
        upload_bytes: Payload up.
        precision: Format of the floating-point products.
        drop_last: Whether loaders drop a last batch that is not full.
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
        drop_last: bool = False,
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
        self._drop_last = drop_last

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
        options, examples = self._options, self._num_examples(client_id)
        if self._drop_last:
            examples -= examples % self._batch_size
        if not examples:
            return 0, 0.0
        per_epoch = -(-examples // self._batch_size)
        fullness = examples / (per_epoch * self._batch_size)
        if options.local_steps is None:
            return per_epoch * (options.local_epochs or 0), fullness
        # A step ends with its epoch, however few batches it then has.
        epochs, steps = divmod(options.local_steps, -(-per_epoch // options.accumulate_grad_batches))
        return epochs * per_epoch + steps * options.accumulate_grad_batches, fullness
