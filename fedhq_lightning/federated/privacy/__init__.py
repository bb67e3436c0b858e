"""Differential privacy of clients (central) and of their examples (local): noise, and what it guarantees."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.federated.privacy.mechanisms import CentralPrivacy, LocalPrivacy

__all__ = ["CentralPrivacy", "LocalPrivacy"]

__getattr__, __dir__ = on_first_use(
    __name__, {"fedhq_lightning.federated.privacy.mechanisms": ["CentralPrivacy", "LocalPrivacy"]}
)
