"""What is installed on request: which extra of this package brings a module, and the message where it is missing."""

from importlib.util import find_spec

from fedhq_lightning.errors import ConfigurationError

EXTRAS = {
    "cryptography": "secure",
    "datasets": "data",
    "executorch": "executorch",
    "flwr": "flower",
    "flwr_datasets": "data",
    "matplotlib": "report",
    "mlxtend": "data",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "opacus": "privacy",
    "peft": "lora",
    "scipy": "report",
    "sklearn": "data",
}
"""By the name that a module is imported by; of those that several extras bring, the extra that is named to users."""


def install_command(*modules: str) -> str:
    """What installs modules of `EXTRAS`."""
    return f"pip install 'fedhq-lightning[{','.join(sorted({EXTRAS[name] for name in modules}))}]'"


def is_installed(module: str) -> bool:
    """Whether a module is there; it is not imported."""
    return find_spec(module) is not None


def check_installed(what: str, *modules: str) -> None:
    """Refuse what takes modules that are not there.

    Args:
        what: Takes them, for the message.
        modules: Names out of `EXTRAS`.

    Raises:
        ConfigurationError: Says what to install.
    """
    missing = [name for name in modules if not is_installed(name)]
    if missing:
        raise ConfigurationError(f"{what} takes {' and '.join(missing)}: {install_command(*missing)}")
