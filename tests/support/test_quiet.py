"""Libraries are quiet while they are told to be, and no longer."""

import io
import logging
import sys
import warnings

import pytest

from fedhq_lightning.cli.parser import complain
from fedhq_lightning.support.quiet import libraries_quiet, say_line, show_warnings


class Unbuffered(io.StringIO):
    """What the system gets, call by call, where Python does not buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def write(self, text: str) -> int:
        self.calls.append(text)
        return len(text)


def test_what_shows_and_what_does_not(warned):
    logger = logging.getLogger("a_library")
    before = logger.level

    def speak() -> None:
        with libraries_quiet("a_library", noise=["advice of a library: [0-9]"]):
            logger.info("a notice")
            logger.warning("a remark")
            warnings.warn("advice of a library: 5", stacklevel=1)
            raise KeyError

    with pytest.raises(KeyError):
        speak()
    assert warned.messages == ["a remark"]
    assert logger.level == before
    with pytest.warns(UserWarning, match="advice"):
        warnings.warn("advice of a library: 5", stacklevel=1)
    with pytest.warns(UserWarning, match="of the user"), libraries_quiet("a_library", noise=["advice of a library"]):
        warnings.warn("advice of the user's own, unlike advice of a library", stacklevel=1)


def test_warnings_of_everybody_are_a_line_each_and_once():
    said, names = [], ("fedhq_lightning.federated.setup", "a_library.other", "users_own")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show_warnings(said.append)
        for _ in range(2):
            for name in names:
                warnings.warn_explicit(f"of\n {name}", UserWarning, "a_file.py", 7, module=name)
    assert said == [f"warning: of {name}" for name in names]


def test_a_line_is_one_call_so_that_no_other_process_writes_into_it(monkeypatch):
    stream, errors = Unbuffered(), Unbuffered()
    say_line("two\nlines", stream)
    assert stream.calls == ["two\nlines\n"]
    monkeypatch.setattr(sys, "stderr", errors)
    complain("no")
    assert errors.calls == ["fedhq: no\n"]
