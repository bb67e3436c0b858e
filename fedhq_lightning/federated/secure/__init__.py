"""Secure aggregation: the server learns the sum of a round's updates, and no update."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.federated.secure.secure_aggregation import SecureAggregation

__all__ = ["SecureAggregation"]

__getattr__, __dir__ = on_first_use(
    __name__, {"fedhq_lightning.federated.secure.secure_aggregation": ["SecureAggregation"]}
)
