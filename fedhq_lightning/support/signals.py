"""A scheduler's SIGTERM, or the SIGHUP of a terminal that closes, ends a process as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NOTHING_TO_RESUME = " before the first checkpoint: there is nothing to resume"
_DEFAULTS: dict[signal.Signals, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}
"""What each does where nobody has said otherwise; one that is ignored, as SIGHUP is under `nohup`, stays ignored."""


class Stopped(KeyboardInterrupt):
    """A signal has told this process to end; whatever cleans up after Ctrl-C cleans up after it.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = signal.Signals(number)


_received: list[int] = []
"""The signal that has come, until the block of `stoppable` that handled it is left."""


_handlers: list[Any] = []
"""Those of the blocks of `stoppable` that are open."""
_asked: list[Callable[[], None]] = []
"""What the first thread shall call at the next SIGTERM, which is this process's own."""


def words_for(interruption: KeyboardInterrupt) -> str:
    """How a process that ends by it begins to say so."""
    number = _number_of(interruption)
    return "interrupted" if number is signal.SIGINT else f"stopped by {number.name}"


def exit_code_of(interruption: KeyboardInterrupt) -> int:
    """As a shell has it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + _number_of(interruption)


@contextmanager
def stoppable(*, ctrl_c: bool = False, second_ends: bool = True) -> Iterator[bool]:
    """Within, SIGTERM and SIGHUP raise `Stopped`, once.

    A signal for which somebody has set a handler, or that is ignored, is left alone; so are all of them in threads
    other than the first, to which Python gives none.

    Args:
        ctrl_c: Ctrl-C too.
        second_ends: Whether a second signal ends the process at once; else it is ignored, as is right where another
            process passes on the signal that has come by itself already.

    Yields:
        Whether any of them is handled here.
    """
    is_main, own_process = threading.current_thread() is threading.main_thread(), os.getpid()
    wanted = [signal.SIGTERM, signal.SIGHUP, *([signal.SIGINT] if ctrl_c else [])]
    own = [number for number in wanted if is_main and signal.getsignal(number) is _DEFAULTS[number]]
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def stop(number: int, frame: FrameType | None) -> None:
        if _asked:
            _asked.pop()()
            return
        for each in own:
            # Not SIG_IGN: Python prints a traceback where it is set while a signal is on its way.
            signal.signal(each, signal.SIG_DFL if second_ends else lambda *_: None)
        if os.getpid() != own_process:  # forked by the user's code, with our handlers
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if number == signal.SIGHUP:
            _let_go_of(terminals)
        _received.append(number)
        raise Stopped(number)

    for number in own:
        signal.signal(number, stop)
        _handlers.append(stop)
    try:
        yield bool(own)
    finally:
        del _handlers[len(_handlers) - len(own) :]
        for number in own:
            if second_ends or not _received:
                signal.signal(number, _DEFAULTS[number])
        if own:
            _received.clear()
            _asked.clear()


def raise_in_first_thread(action: Callable[[], None]) -> bool:
    """Have the first thread call what raises, wherever it computes or waits, from another thread.

    Only within `stoppable`, and where SIGTERM is handled by it.

    Args:
        action: Called soon, by the first thread.

    Returns:
        Whether it will be.
    """
    if signal.getsignal(signal.SIGTERM) not in _handlers:
        return False
    _asked.append(action)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    return True


def check_stopped() -> None:
    """Where a library may have swallowed what `stoppable` raised, as compilers do.

    Raises:
        Stopped: Again.
    """
    if _received:
        raise Stopped(_received[0])


def _number_of(interruption: KeyboardInterrupt) -> signal.Signals:
    return interruption.number if isinstance(interruption, Stopped) else signal.SIGINT


def _let_go_of(terminals: list[int]) -> None:
    """Print to nowhere in place of a terminal that is gone, where every line would be an error."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
