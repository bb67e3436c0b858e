"""The deployed model: exported, packed, written to `model/`, loaded again, and its speed."""

from typing import TYPE_CHECKING

from fedhq_lightning.support.lazy import on_first_use

if TYPE_CHECKING:
    from fedhq_lightning.deploy.export import ExportError, export_program, load_packed, packed_size, save_packed

__all__ = ["ExportError", "export_program", "load_packed", "packed_size", "save_packed"]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "fedhq_lightning.deploy.export": ["ExportError", "export_program", "load_packed", "packed_size", "save_packed"],
    },
)
