"""Whose modules a recipe may have imported while somebody only looks at it: to import a module is to run its code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse import set_parsing_settings
from jsonargparse._common import parsing_settings  # jsonargparse has no way to take a setting back

from fedhq_lightning.errors import ConfigurationError

TRUSTED = ("fedhq_lightning", "torch", "lightning", "pytorch_lightning", "torchmetrics", "flwr_datasets.partitioner")
"""What recipes name classes of, and this package is made of anyway."""
_PROGRAMS = ("fedhq_lightning.cli", "torch.utils.model_dump", "torch.testing")
"""Parts of these that do something as soon as they are imported."""

_DENIED = re.compile(r"Importing '([^']+)' is not allowed, denied by")


class UntrustedImportError(ConfigurationError):
    """A recipe names something of a module that is not `TRUSTED`; it was not imported.

    Attributes:
        name: Its path.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} was not imported")
        self.name = name


@contextmanager
def only_trusted_imports() -> Iterator[None]:
    """Have recipes resolved without importing anything but `TRUSTED`, whether or not it is where it was named.

    What an allowed module has of others, such as `torch.os.system`, is denied too.

    Raises:
        UntrustedImportError: In place of the error that this led to.
    """
    before = dict(parsing_settings)
    set_parsing_settings(import_path_denylist=["*", *_PROGRAMS], import_path_allowlist=[*TRUSTED])
    try:
        yield
    except ConfigurationError as error:
        if denied := _DENIED.search(str(error.__cause__)):
            raise UntrustedImportError(denied[1]) from error
        raise
    finally:
        parsing_settings.update(before)
