import logging
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from fedhq_lightning.errors import ConfigurationError
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


def installed(folder: Path, name: str, version: str) -> None:
    """What pip leaves of a package, found before the real one's by interpreters that have `folder` on their path."""
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


class TestVersions:
    def test_the_ranges_are_those_that_pip_holds(self) -> None:
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
        ranges = {f"{name}>={lowest},<{below}" for name, (lowest, below) in torchao_quietly._RANGES.items()}
        assert ranges <= set(project["dependencies"])

    @pytest.mark.parametrize(
        ("name", "version"),
        [("torchao", "0.17.1"), ("torchao", "0.19.0"), ("torch", "2.12.1+cu126"), ("torch", "2.14.0.dev20261201")],
    )
    def test_another_is_told_by_name_with_what_to_install(
        self, name: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installed(tmp_path, name, version)
        monkeypatch.syspath_prepend(str(tmp_path))
        lowest, below = torchao_quietly._RANGES[name]
        told = (
            f"{name} {version} is installed; quantized lanes take {lowest} or newer, below {below}: "
            f"pip install '{name}>={lowest},<{below}'"
        )
        with pytest.raises(ConfigurationError, match=f"^{re.escape(told)}$"):
            torchao_quietly._check_versions()

    def test_patches_and_builds_of_the_range_are_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(tmp_path, "torch", "2.13.1+cu130")
        installed(tmp_path, "torchao", "0.18.2")
        monkeypatch.syspath_prepend(str(tmp_path))
        torchao_quietly._check_versions()

    def test_none_at_all_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> str:
            raise PackageNotFoundError(name)

        monkeypatch.setattr(torchao_quietly, "version", missing)
        with pytest.raises(ConfigurationError, match=r"^torch is not installed; "):
            torchao_quietly._check_versions()

    def test_a_command_says_so_in_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        installed(tmp_path, "torchao", "0.17.1")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        command = [sys.executable, "-m", "fedhq_lightning.cli.main", "run", "digits-smoke"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "torchao 0.17.1 is installed; quantized lanes take 0.18 or newer" in done.stderr
        assert "Traceback" not in done.stderr
