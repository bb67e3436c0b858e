"""Which process prints and writes. Known before torch is imported, and before the other processes are started."""

from __future__ import annotations

import os
import sys

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Where Lightning looks, in its order."""


def is_first_process() -> bool:
    """Whether this is process 0 of the run.

    Lightning knows once it is imported; before, and of the processes of one node, the environment tells.
    """
    return process_rank() == os.environ.get("LOCAL_RANK", "0") == os.environ.get("NODE_RANK", "0") == "0"


def process_rank() -> str:
    """Of this process, among those of all nodes as far as that is known yet."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    rank = None if lightning is None else getattr(lightning.rank_zero_only, "rank", None)
    if rank is None:
        rank = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    return str(rank)


def is_first_of_node() -> bool:
    """Whether this is the first process of its machine, whose words are read there."""
    return next((os.environ[name] for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in os.environ), "0") == "0"
