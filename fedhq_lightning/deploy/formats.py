"""The files that the deployed model is written to beside `model.pt2`, by the names that `trainer.export` takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fedhq_lightning.deploy import aoti_program, executorch_model, executorch_program, onnx_model, onnx_program
from fedhq_lightning.deploy.export import ExportError
from fedhq_lightning.deploy.model_to_write import ModelToWrite
from fedhq_lightning.deploy.program_file import load_program
from fedhq_lightning.deploy.written_file import Agreement, WrittenFile
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.extras import check_installed


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        file: Its name in `model/`.
        runtime: The package that runs it.
        needs: Modules that are imported to write and to read it.
        write: Writes a model to a path, whole or not at all. An ExportError says why a model cannot be written.
        read: A written file as a module on torch tensors, with the arguments and outputs of the model's `forward`; on
            torch's number of threads. `trust`: whatever is in it. A ConfigurationError says what is wrong with it.
        in_float: The same model in float32 and in the same runtime, to be timed beside it; an ExportError as of write.
        usage: Lines of Python that run a written file, for the folder's README.
        note: What else its users should know, likewise.
        danger: Why a file of others may do harm, so that it is read on trust alone; empty where it may not.
    """

    file: str
    runtime: str
    needs: tuple[str, ...]
    write: Callable[[ModelToWrite, Path], None]
    read: Callable[[Path, bool], nn.Module]
    in_float: Callable[[ModelToWrite], nn.Module]
    usage: Callable[[ModelToWrite], str]
    note: str
    danger: str = ""

    @property
    def suffix(self) -> str:
        """What names of such files end in."""
        return self.file.removeprefix("model")

    def check_installed(self) -> None:
        """Refuse where a module is missing.

        Raises:
            ConfigurationError: Says what to install.
        """
        check_installed(self.file, *self.needs)


FORMATS = {
    "onnx": Format(
        file="model.onnx",
        runtime="onnxruntime",
        needs=("onnx", "onnxscript", "onnxruntime"),
        write=onnx_program.write,
        read=onnx_model.read,
        in_float=lambda model: onnx_model.OnnxModel(onnx_program.in_float(model)),
        usage=onnx_program.usage,
        note=(
            "On x86 processors without VNNI (of before about 2019) onnxruntime adds products of 8-bit weights in 16 "
            "bits, which may overflow; there give it `SessionOptions` with `session.x64quantprecision` set to `1`."
        ),
    ),
    "executorch": Format(
        file="model.pte",
        runtime="executorch",
        needs=("executorch",),
        write=executorch_program.write,
        read=executorch_model.read,
        in_float=lambda model: executorch_model.ExecutorchModel(executorch_program.in_float(model)),
        usage=executorch_program.usage,
        note=(
            f"It takes batches of 1 to {executorch_program.MOST_SAMPLES} samples. Depthwise convolutions compute in "
            "float32 in it, with weights on their grid, and so do norms, but for a BatchNorm after a layer, which is "
            "part of that layer's scales."
        ),
        danger="ExecuTorch's runtime is not made to withstand forged files",
    ),
    "aoti": Format(
        file="model.aoti.pt2",
        runtime="AOTInductor",
        needs=(),
        write=aoti_program.write,
        read=aoti_program.read,
        in_float=aoti_program.in_float,
        usage=aoti_program.usage,
        note="It is machine code: for the torch that wrote it, and for processors with the instructions of that one.",
        danger="it is machine code",
    ),
}
"""By their names in `trainer.export`."""


def write_formats(names: Sequence[str], model: ModelToWrite, folder: Path) -> list[WrittenFile]:
    """Write a model to a file of each format, read it back and compare what it computes.

    Args:
        names: Among `FORMATS`.
        model: What to write.
        folder: `model/`.

    Returns:
        What is told of each; of one that cannot be written the reason. A file that fails its comparison is not kept.
    """
    return [_write(FORMATS[name], model, folder / FORMATS[name].file) for name in names]


def _write(form: Format, model: ModelToWrite, path: Path) -> WrittenFile:
    try:
        form.check_installed()
        form.write(model, path)
        program = form.read(path, bool(form.danger))
        agreement = Agreement.of(program, model.converted, model.example_args)
    except (ExportError, ConfigurationError) as error:
        path.unlink(missing_ok=True)
        return WrittenFile(form.file, form.runtime, reason=str(error))
    return WrittenFile(form.file, form.runtime, path.stat().st_size, agreement, program=program)


def float_forms(model: ModelToWrite, files: Collection[str]) -> dict[str, nn.Module]:
    """A deployed model in float32 in the runtime of each of its files, by what is said of it; but where that fails.

    Args:
        model: What was written.
        files: Names of the files that are there.
    """
    found = {}
    for form in FORMATS.values():
        if any(name.endswith(form.suffix) for name in files):
            with suppress(ExportError, ConfigurationError):
                found[f"fp32 in {form.runtime}"] = form.in_float(model)
    return found


def is_program(file: Path) -> bool:
    """Whether a file has the name of one that `read_program` takes."""
    return file.name.endswith(_suffixes())


def program_suffixes() -> str:
    """What names of such files end in, as a phrase."""
    return ", ".join(_suffixes())


def _suffixes() -> tuple[str, ...]:
    return (".pt2", *(form.suffix for form in FORMATS.values() if not form.suffix.endswith(".pt2")))


def read_program(file: Path, trust: bool = False) -> nn.Module:
    """A file of a deployed model as a module on torch tensors, with the arguments and outputs of the model's `forward`.

    Args:
        file: A `.pt2` file, or one of `FORMATS`; told apart by what their names end in.
        trust: Read it whatever is in it, and run that.

    Raises:
        ConfigurationError: It is of no kind that is known, its runtime is not installed, it is damaged, or there is
            something in it that might run code of whoever made it.
    """
    for form in FORMATS.values():
        if file.name.endswith(form.suffix):
            form.check_installed()
            if form.danger and not trust:
                raise ConfigurationError(f"{file.name}: {form.danger}, so it was not loaded (--trust loads it)")
            return form.read(file, trust)
    if file.name.endswith(".pt2"):
        return load_program(file, trust)
    raise ConfigurationError(f"{file.name} is no file of {program_suffixes()}")
