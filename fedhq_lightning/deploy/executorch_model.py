"""`model.pte` read back: run by ExecuTorch's runtime for Python on torch tensors."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.quiet import libraries_quiet
from fedhq_lightning.support.text import first_line
from fedhq_lightning.support.untrusted_files import read_bytes

_MOST_BYTES = 2**32
_LIBRARIES = ("executorch", "torchao", "torch.fx", "torch.export", "torch.utils._pytree", "root")
_NOISE = (".*",)  # of deprecations in torch and torchao


class ExecutorchModel(nn.Module):
    """A model in ExecuTorch, on torch's number of threads. Batches beyond what a file takes are run in parts.

    Args:
        content: A `.pte` file's.

    Attributes:
        facts: What the file tells of its inputs and outputs, by name.

    Raises:
        ConfigurationError: ExecuTorch cannot read it.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        try:
            with executorch_quiet(), _native_output_dropped():
                from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
                from executorch.runtime import Runtime

                _unsafe_reset_threadpool(torch.get_num_threads())
                program = Runtime.get().load_program(content)
                method = program.load_method("forward")
                assert method is not None
                self._program, self._method, metadata = program, method, method.metadata
                self._inputs = metadata.num_inputs()
                self._most = metadata.input_tensor_meta(0).sizes()[0]
                told = sorted({"takes", "outputs"} & program.method_names)
                self.facts: dict[str, str] = {name: program.load_method(name).execute(())[0] for name in told}
                self._nesting, self._has_run = json.loads(self.facts.get("outputs", '"tensor"')), False
        except Exception as error:  # the runtime's errors have no base of their own
            raise ConfigurationError(f"ExecuTorch cannot read it: {first_line(error)}") from error

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Outputs of one forward call, nested as the model's own.

        Raises:
            ValueError: There are other arguments than the file's inputs.
            RuntimeError: ExecuTorch has lowered the model to something that it cannot run.
        """
        leaves = pytree.tree_leaves((args, keywords))
        if len(leaves) != self._inputs or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise ValueError(f"it takes {self._inputs} tensors and nothing else")
        parts = zip(*(leaf.detach().cpu().contiguous().split(self._most) for leaf in leaves), strict=True)
        # What does not run fails at the first call, and the runtime tells lines of its own.
        with nullcontext() if self._has_run else _native_output_dropped():
            try:
                # The next call writes to the same memory.
                found = [[output.clone() for output in self._method.execute(list(part))] for part in parts]
            except RuntimeError as error:
                raise RuntimeError(
                    f"ExecuTorch cannot run what it has made of the model ({first_line(error)}); take another file"
                ) from error
        self._has_run = True
        outputs = [torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*found, strict=True)]
        if isinstance(self._nesting, list):
            return dict(zip(self._nesting, outputs, strict=True))
        return outputs[0] if self._nesting == "tensor" else tuple(outputs)


def read(file: Path, trust: bool = False) -> nn.Module:
    """Read a program of ExecuTorch.

    Args:
        file: A `.pte` file.
        trust: Its runtime looks for damage and not for what somebody has forged: read what is trusted.

    Raises:
        ConfigurationError: It is damaged, or larger than 4 GiB.
    """
    try:
        return ExecutorchModel(read_bytes(file, _MOST_BYTES))
    except ConfigurationError as error:
        raise ConfigurationError(f"{file.name}: {error}") from error


@contextmanager
def executorch_quiet() -> Iterator[None]:
    """Silence what is said while ExecuTorch is imported and lowers a model; it gives the root logger a handler, too."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    try:
        with libraries_quiet(*_LIBRARIES, level=logging.CRITICAL, noise=_NOISE):
            yield
    finally:
        root.handlers[:] = handlers


@contextmanager
def _native_output_dropped() -> Iterator[None]:
    """Without what C++ writes to standard error: the runtime tells in five lines that it looked at the processor."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
