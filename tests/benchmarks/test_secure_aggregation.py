"""The benchmark of secure rounds: a small one is measured, and its bytes are those that runs are charged."""

import pytest
import secure_aggregation

from fedhq_lightning.federated.secure.messages import downlink_bytes, uplink_bytes


@pytest.mark.parametrize(("bits", "num_lost"), [(64, 0), (32, 2)])
def test_a_round(bits: int, num_lost: int) -> None:
    found = secure_aggregation.measure(6, 1000, bits, num_lost)
    assert found.uplink_bytes == uplink_bytes(6, 1000, bits)
    assert found.downlink_bytes == downlink_bytes(6) - 4 * num_lost  # the list of survivors is shorter
    assert found.beside_bytes < found.uplink_bytes
    assert min(found.key_seconds, found.mask_seconds, found.sum_seconds, found.unmask_seconds) > 0
