"""Where the processes of a run meet: a store that the first of them opens, or torchrun's own."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch._C._distributed_c10d import TCPStore

from fedhq_lightning.errors import ConfigurationError, RunError
from fedhq_lightning.support.process_watch import FOREVER

_SECONDS_BETWEEN_LOOKS = 0.05
_SECONDS_BETWEEN_PROBES = 2.0
_SECONDS_TO_ANSWER = 15.0
"""Of a store that listens."""


def check_meeting_place(environment: ClusterEnvironment, num_nodes: int) -> None:
    """Refuse nodes that would each wait for the others at a place of its own."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if num_nodes > 1 and missing and isinstance(environment, LightningEnvironment):
        raise ConfigurationError(
            f"num_nodes {num_nodes}: {' and '.join(missing)} not set; start every node with torchrun or srun, or set "
            "MASTER_ADDR to the first node's address, MASTER_PORT to a free port there, and NODE_RANK to 0, 1, ..."
        )


def agent_listens() -> bool:
    """Whether torchrun's own process has the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def listen(environment: ClusterEnvironment, count: int) -> TCPStore:
    """Open the store that all processes meet at.

    Raises:
        ConfigurationError: Another program has the port that was given.
    """
    is_free_to_choose = isinstance(environment, LightningEnvironment) and "MASTER_PORT" not in os.environ
    address, port = environment.main_address, 0 if is_free_to_choose else environment.main_port
    try:
        store = TCPStore(address, port, count, is_master=True, timeout=FOREVER, wait_for_workers=False)
    except RuntimeError as error:
        raise ConfigurationError(
            f"MASTER_PORT {port}: this machine does not let the processes of the run meet at {address}:{port}, most "
            "often because another program has that port; set another, or leave MASTER_PORT out"
        ) from error
    os.environ["MASTER_PORT"] = str(store.port)
    return store


def reach(address: str, port: int, seconds: float) -> TCPStore:
    """Connect to the store.

    Raises:
        RunError: Nothing answers there.
    """
    answers: queue.SimpleQueue[TCPStore | RuntimeError] = queue.SimpleQueue()

    def connect() -> None:
        try:
            limit = timedelta(seconds=seconds)
            answers.put(TCPStore(address, port, is_master=False, timeout=limit, wait_for_workers=False))
        except RuntimeError as error:
            answers.put(error)

    # In a thread, because it waits for ever where another program answers, and lets no signal through meanwhile.
    threading.Thread(target=connect, daemon=True).start()
    began = listened = looked = time.monotonic()
    while (now := time.monotonic()) < began + seconds + _SECONDS_BETWEEN_LOOKS:
        with suppress(queue.Empty):
            answer = answers.get(timeout=_SECONDS_BETWEEN_LOOKS)
            if isinstance(answer, TCPStore):
                return answer
            break
        if now - looked > _SECONDS_BETWEEN_PROBES:
            looked = now
            listened = listened if _is_listened_at(address, port) else now
        if now - listened > _SECONDS_TO_ANSWER:
            break
    raise RunError(
        f"process 0 was not reached at {address}:{port} within {time.monotonic() - began:.0f} s: it has ended, or "
        "another program has that port"
    )


def _is_listened_at(address: str, port: int) -> bool:
    """Whether any program is; a store would have answered."""
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False
