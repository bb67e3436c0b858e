"""The one place that imports torchao, so that two messages it emits on import do not reach the terminal.

Its wheel carries kernels for several CUDA and Python versions, loads all of them and logs a warning for each that does
not fit; and it registers an enum with torch's pytree in a way that torch logs as deprecated. Neither is for the user.
Filters drop exactly these records, and only while the import runs.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

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
