"""Words completed by Tab, as the shells ask for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedhq_lightning.cli.main import main
from fedhq_lightning.recipe import files as recipe_files

COMPLETE = """
eval "$(fedhq completion bash)"
COMP_LINE=$1; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
read -ra COMP_WORDS <<< "$COMP_LINE"
[[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
declared=$(complete -p fedhq)
function=${declared##*-F }; function=${function%% *}
$function fedhq "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
compgen -W "${COMPREPLY[*]}" -- "${COMP_WORDS[COMP_CWORD]}"
"""
"""What bash does at Tab: call the function that was declared for the command, with the line in COMP_*."""


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`fedhq` as a shell finds it, in a folder without torch's import to pay for; the working directory stays empty."""
    folder = tmp_path.parent / f"{tmp_path.name}-bin"
    folder.mkdir()
    script = folder / "fedhq"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedhq_lightning.cli.main "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def completed(line: str) -> list[str]:
    done = subprocess.run(["bash", "--norc", "-c", COMPLETE, "bash", line], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [word.strip() for word in done.stdout.splitlines()]


@pytest.mark.usefixtures("on_path")
class TestBash:
    def test_commands(self) -> None:
        assert completed("fedhq re") == ["resume", "report"]
        assert "completion" in completed("fedhq ")

    def test_recipes_and_files(self, tmp_path: Path) -> None:
        (tmp_path / "digits-mine.yaml").touch()
        (tmp_path / "digits-notes.txt").touch()
        shipped = [name for name in recipe_files.shipped() if name.startswith("digits-")]
        assert sorted(completed("fedhq run digits-")) == sorted(["digits-mine.yaml", *shipped])
        assert sorted(completed("fedhq cp digits-")) == sorted(shipped)

    def test_run_directories_and_models(self, tmp_path: Path) -> None:
        for name in ("20250101-000000-aa", "20250102-000000-bb"):
            run = tmp_path / "runs" / "digits-smoke" / name
            run.mkdir(parents=True)
            (run / "recipe.yaml").touch()
        (tmp_path / "alone.pt2").touch()
        runs = {f"runs/digits-smoke/{name}" for name in ("20250101-000000-aa", "20250102-000000-bb")}
        for command in ("resume", "eval", "report"):
            assert set(completed(f"fedhq {command} runs/")) == runs
        assert completed("fedhq eval al") == ["alone.pt2"]

    def test_options(self) -> None:
        assert completed("fedhq profile --w") == ["--write"]


@pytest.mark.parametrize(("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef fedhq"), ("fish", "complete")])
def test_each_shell_has_a_script(capsys: pytest.CaptureFixture[str], shell: str, mark: str) -> None:
    assert main(["completion", shell]) == 0
    assert mark in capsys.readouterr().out


def test_another_shell(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", "cmd"])
    assert ended.value.code == 2
    assert "invalid choice: 'cmd' (choose from 'bash', 'zsh', 'fish')" in capsys.readouterr().err
