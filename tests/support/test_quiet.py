"""Libraries are quiet while they are told to be, and no longer."""

import io
import logging
import sys
import warnings

import pytest

from fedhq_lightning.cli.parser import complain
from fedhq_lightning.support.quiet import libraries_quiet, say_line, show_own_warnings


class Unbuffered(io.StringIO):
    """What the system gets, call by call, where Python does not buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def write(self, text: str) -> int:
        self.calls.append(text)
        return len(text)


def test_what_shows_and_what_does_not(caplog):
    logger = logging.getLogger("a_library")
    before = logger.level

    def speak() -> None:
        with libraries_quiet("a_library", warnings_of=[__name__.replace(".", r"\.")]):
            logger.warning("a remark")
            logger.error("an error")
            warnings.warn("advice", stacklevel=1)
            raise KeyError

    with pytest.raises(KeyError):
        speak()
    assert [record.message for record in caplog.records] == ["an error"]
    assert logger.level == before
    with pytest.warns(UserWarning, match="advice"):
        warnings.warn("advice", stacklevel=1)


def test_own_warnings_are_a_line_and_those_of_libraries_none():
    said = []
    with warnings.catch_warnings():
        show_own_warnings(said.append)
        warnings.warn_explicit("ours", UserWarning, "assembly.py", 7, module="fedhq_lightning.federated.setup")
        warnings.warn_explicit("theirs", UserWarning, "other.py", 7, module="a_library.other")
    assert said == ["warning: ours"]


def test_a_line_is_one_call_so_that_no_other_process_writes_into_it(monkeypatch):
    stream, errors = Unbuffered(), Unbuffered()
    say_line("two\nlines", stream)
    assert stream.calls == ["two\nlines\n"]
    monkeypatch.setattr(sys, "stderr", errors)
    complain("no")
    assert errors.calls == ["fedhq: no\n"]
