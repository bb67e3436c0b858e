"""How long the modelled fleet would take, and what its devices can hold. Devices change time only, never values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache

from fedhq_lightning.devices import DeviceProfile, Fleet, training_memory
from fedhq_lightning.devices.calibration import Calibration, shipped_calibration
from fedhq_lightning.devices.lane_kernels import LaneKernels
from fedhq_lightning.devices.roofline import ClientTime, LayerCost, Precision, step_seconds_by_scale
from fedhq_lightning.types import ClientId, FitOptions, Mode

_PROFILES_KEPT = 4096
_CLIENTS_KEPT = 10_000


class VirtualClock:
    """Predicts each client's round: download, local fit, upload.

    Args:
        fleet: Device of every client.
        client_ids: All clients, in the order in which devices are dealt.
        costs: Layers of the model, measured on one batch.
        batch_size: Examples in that batch, a full one.
        num_examples: Examples per client.
        options: Length of a local fit.
        download_bytes: Payload down in every round.
        upload_bytes: Payload up.
        first_download_bytes: What a client receives beside that in the first round that it takes part in.
        precision: Format of the floating-point products.
        drop_last: Whether loaders drop a last batch that is not full.
        gives_batch: Whether a client's loader gives a batch all the same, asked where the client holds less than one.
        kernels: What the recipe says of each layer's kernels; None is the static rule everywhere.
        calibration: Corrects the roofline; None is the shipped one.
        fits_per_round: Local fits of one client in one round, each as long as the others.
        calibrates_ranges: Whether clients that do not train in `qat` calibrate static activation ranges after their
            fit, in a forward pass on the grid.

    Attributes:
        download_bytes: As given.
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
        first_download_bytes: int = 0,
        precision: Precision = "fp32",
        drop_last: bool = False,
        gives_batch: Callable[[ClientId], bool] = lambda client_id: False,
        kernels: LaneKernels | None = None,
        calibration: Calibration | None = None,
        calibrates_ranges: bool = False,
        fits_per_round: int = 1,
    ) -> None:
        self._client_ids = client_ids
        self._positions = None if isinstance(client_ids, range) else {each: i for i, each in enumerate(client_ids)}
        self._costs = costs
        self._batch_size = batch_size
        self._num_examples = num_examples
        self._options = options
        self.download_bytes = download_bytes
        self._upload_bytes = upload_bytes
        self._first_download_bytes = first_download_bytes
        self._precision = precision
        self._drop_last = drop_last
        self._gives_batch = lru_cache(_CLIENTS_KEPT)(gives_batch)
        self._kernels = LaneKernels() if kernels is None else kernels
        self._calibration = shipped_calibration() if calibration is None else calibration
        self._calibrates_ranges = calibrates_ranges
        self._fits_per_round = fits_per_round
        # By identity, since hashing a profile takes longer than all the rest; each entry keeps its profile alive.
        self._step_seconds: dict[tuple[int, Mode], tuple[DeviceProfile, list[float]]] = {}
        self._bytes: dict[tuple[int, Mode, int], tuple[DeviceProfile, float]] = {}
        self._deal(fleet)

    def on(self, fleet: Fleet) -> VirtualClock:
        """A clock of the same clients on other devices; cheap to make.

        Args:
            fleet: Device of every client.
        """
        fleet.check_size(len(self._client_ids))
        other = copy.copy(self)
        other._deal(fleet)
        return other

    def of_fits(self, options: FitOptions) -> VirtualClock:
        """A clock of one local fit of another length.

        Args:
            options: Length of a local fit.
        """
        other = copy.copy(self)
        other._options, other._fits_per_round = options, 1
        return other

    def position(self, client_id: ClientId) -> int:
        """The client's place among all clients."""
        return self._client_ids.index(client_id) if self._positions is None else self._positions[client_id]

    def profile(self, client_id: ClientId) -> DeviceProfile:
        """The client's device."""
        return self._profile_at(self.position(client_id))

    def tier(self, client_id: ClientId) -> str:
        """Name of the client's device."""
        return self.profile(client_id).name

    def time(self, client_id: ClientId, mode: Mode, is_first: bool = False, work: float = 1.0) -> ClientTime:
        """Virtual seconds of the client's round in `mode`; a client without a batch sends nothing back.

        Args:
            client_id: The client.
            mode: How it trains.
            is_first: Whether it takes part for the first time, and receives what no round changes too.
            work: Share of its local steps that it takes.
        """
        device, batches = self._device_at(self.position(client_id)), self._batches(client_id, work)
        download_seconds, upload_seconds = self._link(client_id, is_first)
        compute_seconds = sum(count * self._step(device, mode, examples) for count, examples in batches if count)
        return ClientTime(
            download_seconds=download_seconds,
            compute_seconds=self._fits_per_round * (compute_seconds + self.calibration_seconds(client_id, mode)),
            upload_seconds=upload_seconds,
        )

    def num_examples(self, client_id: ClientId) -> int:
        """Training examples of the client."""
        return self._num_examples(client_id)

    def trains(self, client_id: ClientId) -> bool:
        """Whether the client has a batch to train on: `drop_last` leaves one with few examples none."""
        return bool(self._batches(client_id))

    def num_steps(self, client_id: ClientId) -> int:
        """Optimizer steps of the client's local fit; 0 without a batch."""
        full, rest = divmod(self._num_examples(client_id), self._batch_size)
        return self._options.num_steps(full + bool(rest)) if self.trains(client_id) else 0

    def seconds(self, client_id: ClientId, mode: Mode) -> float:
        """Virtual seconds of a client's whole turn, but its first: download, steps and upload."""
        return self.time(client_id, mode).total

    def link_seconds(self, client_id: ClientId) -> float:
        """Virtual seconds of download and upload, the same in every mode and in every round but the first."""
        return sum(self._link(client_id))

    def calibration_seconds(self, client_id: ClientId, mode: Mode) -> float:
        """Virtual seconds of calibrating static activation ranges, however many steps are taken; 0 without any."""
        calibrates = self._calibrates_ranges and mode != "qat" and self.trains(client_id)
        return self.forward_seconds(client_id, "qat") if calibrates else 0.0

    def analysis_seconds(self, client_id: ClientId) -> float:
        """Virtual seconds of measuring a sensitivity: a forward pass as the model is, and one on the grid."""
        if not self.trains(client_id):
            return 0.0
        return self.forward_seconds(client_id, "fp") + self.forward_seconds(client_id, "qat")

    def forward_seconds(self, client_id: ClientId, mode: Mode = "fp") -> float:
        """Virtual seconds of one forward pass over the client's first batch: a third of a step in that mode."""
        num_examples = min(self._num_examples(client_id), self._batch_size)
        device = self._device_at(self.position(client_id))
        return self._step(device, mode, num_examples) / 3 if num_examples else 0.0

    def statistics_seconds(self, client_id: ClientId, upload_bytes: int, modes: Sequence[Mode]) -> float:
        """Virtual seconds of taking batch statistics: download, a forward pass in each mode, upload.

        Args:
            client_id: The client.
            upload_bytes: Payload up.
            modes: Of the passes.
        """
        download_seconds, _ = self._link(client_id)
        passes = sum(self.forward_seconds(client_id, mode) for mode in modes)
        return download_seconds + passes + self.upload_seconds(client_id, upload_bytes)

    def evaluation_seconds(
        self, client_id: ClientId, num_examples: int, upload_bytes: int, modes: Sequence[Mode]
    ) -> float:
        """Virtual seconds of evaluating a model: download, a pass over the examples in each mode, upload.

        Args:
            client_id: The client.
            num_examples: Those that it evaluates on.
            upload_bytes: Payload up.
            modes: Whose forward pass each view's is: a third of a step.
        """
        device = self._device_at(self.position(client_id))
        full, rest = divmod(num_examples, self._batch_size)
        passes = sum(
            count * self._step(device, mode, examples) / 3
            for mode in modes
            for count, examples in ((full, self._batch_size), (bool(rest), rest))
            if count
        )
        return self._link(client_id)[0] + passes + self.upload_seconds(client_id, upload_bytes)

    def upload_seconds(self, client_id: ClientId, num_bytes: int) -> float:
        """Virtual seconds of sending so many bytes."""
        return 8 * num_bytes / self.profile(client_id).uplink_bits_per_second

    def fits(self, client_id: ClientId, mode: Mode) -> bool:
        """Whether the client's device can hold training in `mode`, on the largest of its batches."""
        profile = self._device_at(self.position(client_id))
        examples = min(self._num_examples(client_id), self._batch_size)
        key = id(profile), mode, examples
        if key not in self._bytes:
            scale = examples / self._batch_size
            needed = training_memory.training_bytes(profile, mode, self._costs, scale, kernels=self._kernels)
            self._bytes[key] = profile, needed
        return training_memory.fits(profile, self._bytes[key][1])

    def _deal(self, fleet: Fleet) -> None:
        self._profile_at = lru_cache(_PROFILES_KEPT)(fleet.profile)
        # Without the client's own link, one object a tier: what the steps' times and bytes are kept by.
        self._device_at = lru_cache(_PROFILES_KEPT)(fleet.device)

    def _link(self, client_id: ClientId, is_first: bool = False) -> tuple[float, float]:
        """Virtual seconds of download and upload."""
        profile, sends = self.profile(client_id), self.trains(client_id)
        download_bytes = self.download_bytes + (self._first_download_bytes if is_first else 0)
        return (
            8 * download_bytes / profile.downlink_bits_per_second,
            8 * self._upload_bytes / profile.uplink_bits_per_second if sends else 0.0,
        )

    def _step(self, profile: DeviceProfile, mode: Mode, num_examples: int) -> float:
        """Virtual seconds of a step on so many examples, 1 to a full batch; all of them are found at once and kept."""
        key = id(profile), mode
        if key not in self._step_seconds:
            seconds = step_seconds_by_scale(
                profile,
                mode,
                self._costs,
                [count / self._batch_size for count in range(1, self._batch_size + 1)],
                precision=self._precision,
                kernels=self._kernels,
                calibration=self._calibration,
            )
            self._step_seconds[key] = profile, seconds
        return self._step_seconds[key][1][num_examples - 1]

    def _batches(self, client_id: ClientId, work: float = 1.0) -> tuple[tuple[int, int], ...]:
        """Batches of a share of a local fit: (how many, of how many examples); full ones, and the ends of epochs."""
        options, examples = self._options, self._num_examples(client_id)
        full, rest = divmod(examples, self._batch_size)
        if self._drop_last and (full or not self._gives_batch(client_id)):
            rest = 0
        per_epoch = full + bool(rest)
        if not per_epoch:
            return ()
        # A step ends with its epoch, however few batches it then has; those of the last epoch are full.
        epochs, steps = divmod(options.num_steps(per_epoch, work), -(-per_epoch // options.accumulate_grad_batches))
        more = steps * options.accumulate_grad_batches
        return (epochs * full + more, self._batch_size), (epochs if rest else 0, rest)
