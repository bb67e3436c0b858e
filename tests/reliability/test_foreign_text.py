"""Text of others: shown as escapes on a terminal, in pictures and pages; files are UTF-8 whatever the locale."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from rich.text import Text

from fedhq_lightning.cli.main import main
from fedhq_lightning.report.allocation_figures import write_allocation_picture
from fedhq_lightning.report.final_table import print_final
from fedhq_lightning.report.report import write_report
from fedhq_lightning.run.run import Run
from fedhq_lightning.support.quiet import say_line
from fedhq_lightning.support.terminal import Terminal
from fedhq_lightning.support.text import printable

from ..small_run import small_rounds, small_summary, write_allocation, write_run
from .test_untrusted_recipes import RECIPE, with_value

ROOT = Path(__file__).parents[2]
EVIL = "a\x1b[2J\rb\x9b31m\u202ec\x00\x07d"
SHOWN = r"a\x1b[2J\rb\x9b31m\u202ec\x00\x07d"


def terminal(is_terminal: bool, encoding: str = "utf-8") -> tuple[Terminal, io.BytesIO]:
    bytes_shown = io.BytesIO()
    file = io.TextIOWrapper(bytes_shown, encoding, write_through=True)
    return Terminal(file=file, force_terminal=is_terminal, width=300, color_system=None), bytes_shown


def test_printable() -> None:
    assert printable(EVIL) == SHOWN
    assert printable(SHOWN) == SHOWN, "so that it can be done twice"
    assert printable("tab\tline\nµ \N{SNOWMAN}") == "tab\tline\nµ \N{SNOWMAN}"
    assert printable("µ\udcff", "ascii") == r"\xb5\udcff"


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_tables_and_lines(is_terminal: bool, encoding: str) -> None:
    name = f"{EVIL} \N{SNOWMAN}"
    rounds = [
        replace(each, clients=tuple(replace(client, client_id=name, tier=name) for client in each.clients[:1]))
        for each in small_rounds(num_rounds=3)
    ]
    console, shown = terminal(is_terminal, encoding)
    print_final(small_summary(rounds) | {"metric_name": name, "tiers": None, "scheme": name}, rounds, console)
    console.print(Text(name))
    console.print(name, markup=False)
    say_line(name, console.file)  # type: ignore[arg-type]  # a text stream
    text = shown.getvalue().decode(encoding)
    assert text.count(r"\x1b[2J") >= 5
    assert printable(text) == text
    assert ("\N{SNOWMAN}" if encoding == "utf-8" else r"\u2603") in text


def test_errors_and_lists(capsys: pytest.CaptureFixture[str]) -> None:
    Path(f"{EVIL.replace(chr(0), '')}.yaml").write_text("a: [")
    recipe = with_value("trainer", "scheme", value=EVIL)
    Path("a.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    wrong = [["show", f"{EVIL.replace(chr(0), '')}.yaml"], ["show", "a.yaml"], ["show", EVIL], ["run", "a.yaml", EVIL]]
    for arguments in wrong:
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert "x1b[2J" in said
        assert printable(said) == said
    with pytest.raises(SystemExit):
        main([EVIL])
    said = capsys.readouterr().err
    assert "x1b[2J" in said
    assert printable(said) == said
    assert main(["show", "x" * 10**6]) == 2
    assert len(capsys.readouterr().err) < 6000, "what was given may be megabytes"


def test_pages_and_pictures(tmp_path: Path) -> None:
    rounds = [
        replace(
            each, reason=EVIL, clients=tuple(replace(client, client_id=EVIL, tier=EVIL) for client in each.clients[:1])
        )
        for each in small_rounds(num_rounds=3)
    ]
    run_dir = write_allocation(write_run(tmp_path / "run", rounds, metric_name=EVIL, recipe=EVIL), explanation=EVIL)
    written = [write_report(Run(run_dir)), write_allocation_picture(run_dir)]
    for path in written:
        assert path is not None
        text = path.read_text(encoding="utf-8")
        assert printable(text) == text
    assert SHOWN in (run_dir / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(find_spec("ruff") is None, reason="`make test-with` installs no linter")
def test_every_file_of_the_package_is_opened_as_utf_8() -> None:
    command = ["ruff", "check", "--isolated", "--preview", "--select", "PLW1514", "--output-format", "concise"]
    command = [sys.executable, "-m", *command, "fedhq_lightning", "callbacks"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("fedhq_lightning/**/*.py")]
    assert not any("text=True" in source for source in sources), "of subprocesses"


def test_another_locale(tmp_path: Path) -> None:
    """A recipe in UTF-8, shown and refused where the locale is C and Python does not help itself to UTF-8."""
    text = f"# Grüße \N{SNOWMAN}\n{yaml.safe_dump(RECIPE)}"
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "b.yaml").write_text(f"{text}\u00fcnknown: 1\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    program = "import sys; from fedhq_lightning.cli.main import main; "
    program += "sys.exit(main(['show', 'a.yaml']) + main(['show', 'b.yaml']))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.decode().startswith("# Grüße \N{SNOWMAN}\n"), "a file has UTF-8"
    assert rb"unknown key '\xfcnknown'" in done.stderr
