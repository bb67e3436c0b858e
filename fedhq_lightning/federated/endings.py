"""How a fit ends when it does not end well: the other processes hear of it, and of a signal the user does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fedhq_lightning.federated.callback import RoundControl
from fedhq_lightning.run.directory import RunDirectory
from fedhq_lightning.support import process_group
from fedhq_lightning.support.first_process import is_first_process
from fedhq_lightning.support.quiet import say_line
from fedhq_lightning.support.signals import NOTHING_TO_RESUME, Stopped, exit_code_of, stoppable, words_for


@contextmanager
def told_to_all(control: RoundControl) -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end the fit, where the script does not handle them.

    Args:
        control: The trainer.

    Raises:
        SystemExit: One of them came, and is handled here.
    """
    with stoppable(second_ends=is_first_process()) as is_ours:
        try:
            yield
        except BaseException as error:
            process_group.end(error)
            if not (is_ours and isinstance(error, Stopped)):
                raise
            if control.is_global_zero:
                again = f"; go on with: fit(module, datamodule, ckpt_path={str(control.run_dir)!r})"
                how = again if RunDirectory(control.run_dir).saved_checkpoints() else NOTHING_TO_RESUME
                say_line(f"{words_for(error)}{how}", sys.stderr)
            raise SystemExit(exit_code_of(error)) from None
