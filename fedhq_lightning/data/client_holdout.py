"""Which of a client's examples it holds back, to evaluate models on."""

import numpy as np
from numpy.typing import NDArray

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.seeds import derive_seed
from fedhq_lightning.types import ClientId


def check_holdout(share: float | None) -> None:
    """Refuse what is no share of a client's examples.

    Args:
        share: As `client_holdout` is given.

    Raises:
        ConfigurationError: Not a number above 0 and below 1, and not None either.
    """
    if share is None:
        return
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ConfigurationError(
            f"client_holdout {share!r}: must be a share of each client's examples above 0 and below 1, such as 0.2, or "
            "null for none"
        )


def held_back(rows: NDArray[np.int64], share: float | None, seed: int | None, client_id: ClientId) -> NDArray[np.bool_]:
    """Which rows one client holds back: drawn without looking at them, the same whatever other clients hold.

    A row that is there twice is held back twice or not at all, so that nothing that is held back is trained on. One
    row at least is left to train on.

    Args:
        rows: (num_rows,) numbers that tell rows apart.
        share: Of them, rounded to whole rows; None for none.
        seed: Another one draws other rows; None draws as 0 does.
        client_id: The client.

    Returns:
        (num_rows,) true where a row is held back.
    """
    distinct = np.unique(rows)
    count = min(round((share or 0.0) * len(distinct)), max(len(distinct) - 1, 0))
    generator = np.random.default_rng(derive_seed(seed or 0, "held back", client_id))
    return np.isin(rows, generator.choice(distinct, count, replace=False))
