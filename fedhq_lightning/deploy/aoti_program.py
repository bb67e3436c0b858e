"""`model.aoti.pt2`: the deployed model as machine code for servers with torch, compiled by AOTInductor."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from torch import nn

from fedhq_lightning.deploy.export import ExportError, integer_program, tracer_silent
from fedhq_lightning.deploy.model_to_write import ModelToWrite, describe_inputs
from fedhq_lightning.deploy.program_file import exact_convolutions
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.compilation import compiler
from fedhq_lightning.support.atomic_files import write_atomically
from fedhq_lightning.support.quiet import libraries_quiet
from fedhq_lightning.support.text import first_line

_OPTIONS = {
    # Constants are computed when it is loaded. While compiling, scales would be multiplied into weights: other bits.
    "aot_inductor.use_runtime_constant_folding": True,
    "eager_numerics.division_rounding": True,
}
_LIBRARIES = ("torch._inductor", "torch._dynamo", "torch.utils.cpp_extension")
_NOISE = (".*",)


class CompiledModel(nn.Module):
    """A compiled model.

    Args:
        file: What `write` wrote.

    Attributes:
        facts: What the file tells of its model, by name.

    Raises:
        ConfigurationError: torch cannot load it.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        try:
            with libraries_quiet(*_LIBRARIES, level=logging.CRITICAL, noise=_NOISE):
                self._model = torch._inductor.aoti_load_package(str(file))
            self.facts: dict[str, str] = self._model.get_metadata()
        except Exception as error:  # of C++, of the linker, of torch
            raise ConfigurationError(f"{file.name}: torch cannot load it: {first_line(error)}") from error

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Outputs of one forward call, nested as the model's own."""
        with exact_convolutions():
            return self._model(*args, **keywords)


def write(model: ModelToWrite, path: Path) -> None:
    """Compile a model for processors with the instructions of this one.

    Args:
        model: With its layers converted.
        path: File to write, whole or not at all.

    Raises:
        ExportError: There is no C++ compiler, or the module cannot be exported or compiled.
        ConfigurationError: The file cannot be written.
    """
    if compiler() is None:
        raise ExportError(f"{path.name} takes a C++ compiler, of which there is none (Debian: apt-get install g++)")
    try:
        with torch.no_grad(), TemporaryDirectory() as folder:
            with tracer_silent():
                program = integer_program(model.converted, model.example_args)
            package = Path(folder) / "model.pt2"
            options = {**_OPTIONS, "aot_inductor.metadata": model.facts()}
            with libraries_quiet(*_LIBRARIES, level=logging.CRITICAL, noise=_NOISE):
                torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=options)
            content = package.read_bytes()
    except Exception as error:  # export and compilation raise whatever a dozen of their passes raise
        kind = type(model.converted).__name__
        raise ExportError(f"{kind} cannot be compiled by AOTInductor: {first_line(error)}") from error
    write_atomically(path, content)


def read(file: Path, trust: bool = False) -> nn.Module:
    """Load a compiled model, which is to run its machine code.

    Args:
        file: As `write` wrote it.
        trust: There is nothing to look through in it: load what is trusted.

    Raises:
        ConfigurationError: torch cannot load it.
    """
    return CompiledModel(file)


def in_float(model: ModelToWrite) -> NoReturn:
    """Not made: to compile the model in float32 would take as long again.

    Raises:
        ExportError: Always.
    """
    raise ExportError("the float32 form is not compiled")


def usage(model: ModelToWrite) -> str:
    """Lines of Python that run the written file."""
    return f"""import torch

model = torch._inductor.aoti_load_package("model.aoti.pt2")
outputs = model(inputs)  # {describe_inputs(model.example_args)}"""
