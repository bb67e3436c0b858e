import logging
import subprocess
import sys

import pytest

from fedhq_lightning.quantize import torchao_quietly


def test_the_import_says_nothing_and_no_other_module_imports_torchao() -> None:
    code = (
        "import sys, fedhq_lightning.quantize as q\n"
        "from fedhq_lightning.quantize import QuantScheme, round_to_grid, pack\n"
        "assert 'torchao' not in sys.modules\n"
        "from fedhq_lightning.quantize import prepare, convert\n"
        "assert 'torchao' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_other_messages_pass(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), torchao_quietly._noise_dropped():
        logging.getLogger("torchao").warning("Failed to load x.so: no")
        logging.getLogger("torchao").warning("Skipping import of cpp extensions")
    assert [record.message for record in caplog.records] == ["Skipping import of cpp extensions"]


def test_filters_go_away_after_the_import(caplog: pytest.LogCaptureFixture) -> None:
    with torchao_quietly._noise_dropped():
        pass
    logging.getLogger("torchao").warning("Failed to load x.so: no")
    assert len(caplog.records) == 1
