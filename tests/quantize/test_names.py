import subprocess
import sys

import pytest

from fedhq_lightning import quantize


@pytest.mark.parametrize("name", quantize.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(quantize, name).__doc__
    assert name in dir(quantize)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        quantize.nothing  # noqa: B018  # the access is the test


def test_the_package_itself_imports_no_torch() -> None:
    code = "import sys, fedhq_lightning.quantize; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
