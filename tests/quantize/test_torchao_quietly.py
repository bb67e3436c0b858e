import logging
import subprocess
import sys

from fedhq_lightning.quantize import torchao_quietly

from ..conftest import Warned


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


def test_other_messages_pass(warned: Warned) -> None:
    with torchao_quietly._noise_dropped():
        logging.getLogger("torchao").warning("Failed to load x.so: no")
        logging.getLogger("torchao").warning("Skipping import of cpp extensions")
    assert warned.messages == ["Skipping import of cpp extensions"]


def test_filters_go_away_after_the_import(warned: Warned) -> None:
    with torchao_quietly._noise_dropped():
        pass
    logging.getLogger("torchao").warning("Failed to load x.so: no")
    assert len(warned.messages) == 1
