"""The one place that imports torchao: versions are checked first, and two messages of its stay out of the terminal.

The lanes are registered with torchao's private parts, and it and torch change theirs between versions. pip holds the
ranges where it installs; what was put in later is told here, in place of a traceback out of the middle of torchao.

torchao's wheel carries kernels for several CUDA and Python versions, loads all of them and logs a warning for each that
does not fit; and it registers an enum with torch's pytree in a way that torch logs as deprecated. Neither is for the
user. Filters drop exactly these records, and only while the import runs.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from fedhq_lightning.errors import ConfigurationError

_RANGES = {"torch": ("2.13", "2.14"), "torchao": ("0.18", "0.19")}
"""From, and below: those of pyproject.toml."""

_NOISE = {
    "torchao": "Failed to load ",
    "torch.utils._pytree": "%s is an Enum subclass and is now natively supported",
}


@contextmanager
def _noise_dropped() -> Iterator[None]:
    filters = []
    for name, beginning in _NOISE.items():

        def keep(record: logging.LogRecord, beginning: str = beginning) -> bool:
            return not str(record.msg).startswith(beginning)

        logger = logging.getLogger(name)
        logger.addFilter(keep)
        filters.append((logger, keep))
    try:
        yield
    finally:
        for logger, keep in filters:
            logger.removeFilter(keep)


def _release(text: str) -> tuple[int, ...]:
    """(2, 13) of `2.13.0+cpu`; nothing of what is no version."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _check_versions() -> None:
    """Refuse a torch or torchao of other private parts, before it is imported.

    Raises:
        ConfigurationError: Says what is installed, and what to install.
    """
    for name, (lowest, below) in _RANGES.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = ""
        if not _release(lowest) <= _release(installed) < _release(below):
            found = f"{name} {installed} is installed" if installed else f"{name} is not installed"
            raise ConfigurationError(
                f"{found}; quantized lanes take {lowest} or newer, below {below}: "
                f"pip install '{name}>={lowest},<{below}'"
            )


_check_versions()
with _noise_dropped():
    from torchao.core.config import AOBaseConfig
    from torchao.quantization import quantize_
    from torchao.quantization.granularity import PerToken
    from torchao.quantization.qat import FakeQuantizedLinear, IntxFakeQuantizeConfig
    from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer
    from torchao.quantization.transform_module import register_quantize_module_handler

__all__ = [
    "AOBaseConfig",
    "FakeQuantizedLinear",
    "IntxFakeQuantizeConfig",
    "IntxFakeQuantizer",
    "PerToken",
    "quantize_",
    "register_quantize_module_handler",
]
