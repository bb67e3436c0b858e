"""Clients on machines of their own: a recipe as a Flower app, its server half and its client half."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.flower.apps import client_app, server_app

__all__ = ["client_app", "server_app"]

__getattr__, __dir__ = on_first_use(__name__, {"fedhq_lightning.flower.apps": ["client_app", "server_app"]})
