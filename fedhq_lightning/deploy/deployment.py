"""What was written to `model/`, as the summary and the folder's README tell it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from fedhq_lightning.deploy.model_to_write import ModelToWrite
from fedhq_lightning.deploy.written_file import WrittenFile


@dataclass(frozen=True)
class Deployment:
    """What was written.

    Attributes:
        export: "model.pt2", "packed", or "float32" for a model without a scheme.
        reason: Why there is no `model.pt2`, or empty.
        metrics: What the module logs with the written program in place of its `forward`; empty where it was not used.
        files: Those of the deployed model, `model.pt2` first, and those asked for that could not be written.
        model: What the files were made of; None where there is no program.
        packed_bytes: What the deployed tensors take when each weight has its scheme's bits; None without a scheme.
    """

    export: str
    reason: str
    metrics: dict[str, float]
    files: tuple[WrittenFile, ...] = ()
    model: ModelToWrite | None = field(default=None, compare=False, repr=False)
    packed_bytes: int | None = None

    @property
    def programs(self) -> dict[str, nn.Module]:
        """What was written and read back, by the file's name."""
        return {file.name: file.program for file in self.files if file.program is not None}
