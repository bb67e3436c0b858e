"""Help and lists break between words, and a reader who has enough ends a command quietly."""

import subprocess
import sys
from itertools import pairwise

import pytest

from fedhq_lightning.cli.main import make_parser
from fedhq_lightning.cli.word_wrap import columns, wrapped

LIST = """examples:
  fedhq run a                    one of them, which takes seconds
  fedhq run a --trainer.b=5      another

Some words that were written
over two lines.
"""


def test_beside_where_there_is_room() -> None:
    assert list(wrapped(LIST, 100)) == [
        "examples:",
        "  fedhq run a                one of them, which takes seconds",
        "  fedhq run a --trainer.b=5  another",
        "",
        "Some words that were written over two lines.",
    ]


def test_beside_below_and_joined() -> None:
    assert list(wrapped(LIST, 60))[1:4] == [
        "  fedhq run a                one of them, which takes",
        "                             seconds",
        "  fedhq run a --trainer.b=5  another",
    ]
    assert list(wrapped(LIST, 40))[1:] == [
        "  fedhq run a",
        "      one of them, which takes seconds",
        "  fedhq run a --trainer.b=5",
        "      another",
        "",
        "Some words that were written over two",
        "lines.",
    ]


def test_a_command_is_broken_as_a_shell_takes_it() -> None:
    lines = columns([("  fedhq compare digits-smoke --allocators all-ptq all-qat", "")], 40)
    assert lines == ["  fedhq compare digits-smoke \\", "      --allocators all-ptq all-qat"]


def test_without_a_terminal_a_line_each() -> None:
    assert columns([("a", "x " * 200), ("long", "y")], None) == [f"a     {'x ' * 200}".rstrip(), "long  y"]


@pytest.mark.parametrize("width", range(80, 116, 5))
def test_help_of_every_command_fits(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    parser = make_parser()
    for each in (parser, *parser.commands.values()):
        lines = each.format_help().splitlines()
        assert max(map(len, lines)) <= width
        assert not any(first.endswith("-") and second[:1].isalpha() for first, second in pairwise(lines))


@pytest.mark.parametrize("command", [[], ["ls"], ["--help"], ["show", "digits-smoke"], ["completion", "bash"]])
def test_nobody_reads(command: list[str]) -> None:
    line = '"$@" | true; exit ${PIPESTATUS[0]}'
    words = ["bash", "-c", line, "bash", sys.executable, "-m", "fedhq_lightning.cli", *command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_a_pipe_of_the_users_own_that_breaks_is_an_error_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedhq_lightning.cli import shell
    from fedhq_lightning.cli.main import main

    def breaks() -> str:
        raise BrokenPipeError("a socket")

    monkeypatch.setattr(shell, "next_steps", breaks)
    with pytest.raises(BrokenPipeError, match="a socket"):
        main([])
