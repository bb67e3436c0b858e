"""Scripts of several processes, and one silo in the process of the tests."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..programs import run_program

SCRIPT = Path(__file__).with_name("silo_script.py")


def run_script(folder: Path, *arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    """Two silos; a deadlock ends the test by a timeout."""
    ours = {"LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    return run_program(str(script), *arguments, cwd=folder, env=environment)


@contextmanager
def one_silo() -> Iterator[dict[str, Any]]:
    """Settings of a Trainer with one silo in this process; afterwards nothing of its process group is left."""
    environment = dict(os.environ)
    try:
        yield {
            "accelerator": "cpu",
            "devices": 1,
            "strategy": "fedhq",
            "use_distributed_sampler": False,
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(environment)
