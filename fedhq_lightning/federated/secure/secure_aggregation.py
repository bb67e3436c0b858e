"""What a run is asked for with `secure_aggregation`."""

from __future__ import annotations

import math
from fractions import Fraction

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.secure.messages import FEWEST_CLIENTS, Kind
from fedhq_lightning.types import ClientId


class SecureAggregation:
    """Clients mask their updates so that the server learns the sum of a round's, and none of them.

    Args:
        threshold: How many of a cohort must be left for a round to count, and how many clients must work together to
            lay one open: a share of the cohort, or a count. Above half of the cohort.
        bits: 64 or 32. Integers of so many bits are sent and added. With 32 a round takes half the bytes and is rounded
            to about `max_value` times 2**-30 a client.
        max_value: The largest magnitude that a value of an update may have. Whoever has a larger one sends nothing.

    Raises:
        ConfigurationError: A value that cannot work.

    Source: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", for servers
        that follow the protocol, and are curious.
    """

    def __init__(self, threshold: int | float = 0.66, bits: int = 64, max_value: float = 64.0) -> None:
        is_count = isinstance(threshold, int) and not isinstance(threshold, bool)
        is_share = isinstance(threshold, float) and 0.5 < threshold <= 1
        if not (is_share or (is_count and threshold >= 2)):
            raise ConfigurationError(
                f"secure_aggregation threshold {threshold!r}: must be a share of the cohort above 0.5 and at most 1.0, "
                "or a count of clients from 2"
            )
        if bits not in (32, 64):
            raise ConfigurationError(f"secure_aggregation bits {bits!r}: must be 32 or 64")
        is_number = isinstance(max_value, int | float) and not isinstance(max_value, bool)
        if not (is_number and 2.0**-20 <= max_value <= 2.0**20):
            raise ConfigurationError(f"secure_aggregation max_value {max_value!r}: must be from 2**-20 to 2**20")
        self.threshold = threshold
        self.bits = bits
        self.max_value = max_value

    def threshold_of(self, cohort_size: int) -> int:
        """The threshold as a count.

        Args:
            cohort_size: Clients that a round has.

        Raises:
            ConfigurationError: No such threshold hides what clients send, or no round could reach it.
        """
        if cohort_size < FEWEST_CLIENTS:
            raise ConfigurationError(
                f"secure_aggregation with {cohort_size} clients a round: a sum hides what each adds to it from "
                f"{FEWEST_CLIENTS} on; raise clients_per_round"
            )
        count = self.threshold
        if isinstance(count, float):  # as it is written: 0.55 of 100 is 55, and not one more for the last binary digit
            count = math.ceil(Fraction(str(count)) * cohort_size)
        if count > cohort_size:
            raise ConfigurationError(
                f"secure_aggregation threshold {count}: a cohort has {cohort_size} clients, so no round could ever be "
                "unmasked; lower it, or raise clients_per_round"
            )
        if 2 * count <= cohort_size:
            raise ConfigurationError(
                f"secure_aggregation threshold {count}: must be above half of the {cohort_size} clients of a cohort, "
                f"or a server could ask two halves for two secrets of one client; {cohort_size // 2 + 1} or more"
            )
        return count

    def drops_out(self, round_number: int, client_id: ClientId) -> Kind | None:
        """Before which of its answers a client is lost, for drills; None: it stays.

        Clients that are late, idle or quarantined are lost before `Kind.INPUT` without this.
        """
        return None
