"""How the processes of a run start, meet, and end together."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.distributed_c10d import _get_default_store

from fedhq_lightning.errors import RunError
from fedhq_lightning.support.collectives import Processes, is_in_group, lightning_quiet, not_taken_down
from fedhq_lightning.support.first_process import is_first_of_node, is_first_process, process_rank
from fedhq_lightning.support.meeting_place import agent_listens, check_meeting_place, listen, reach
from fedhq_lightning.support.process_watch import (
    FOREVER,
    Lost,
    Watch,
    key_of,
    lost_by_record,
    record_in,
    record_of,
    words_of_exit,
)

DEFAULT_SECONDS = 300.0
_ALL_ARE_HERE = "all are here"
_SECONDS_BETWEEN_LOOKS = 0.05
_SECONDS_TO_START = 60.0
_SECONDS_TO_END = 10.0
_SECONDS_TO_TELL = 2.0
_SECONDS_TO_TELL_NODES = 40.0
"""The first process of another node may take as long until it listens."""
_store: TCPStore | None = None
"""Where the processes meet, once this one has reached it."""
_watch: Watch | None = None
"""This process's, once it has met the others."""
_lost: Lost | None = None
"""Who kept it from meeting them."""
_of_this_node: Container[int] | None = None
"""Ranks of the processes of this machine, once they are known."""
_has_told = False
"""Whether this process, before it had met the others, tried to tell them by what it ends."""
_IMPORTED = time.monotonic()


def launch(fabric: Fabric, seconds: float = DEFAULT_SECONDS) -> Processes:
    """Start the processes that are not running yet; what they say to each other.

    Args:
        fabric: Its strategy tells how many there are, and who starts them.
        seconds: How long one waits for another that does not answer.

    Raises:
        ConfigurationError: A port that is in use; or what another process was refused for.
        RunError: Another process has ended, or did not come.
    """
    strategy: Any = fabric.strategy
    launcher = strategy.launcher
    with lightning_quiet():
        if isinstance(launcher, _SubprocessScriptLauncher) and launcher.num_processes * launcher.num_nodes > 1:
            start_and_meet(strategy, launcher, strategy._get_process_group_backend(), seconds)
        fabric.launch()
    leave_group_at_exit()
    return Processes(fabric.device if fabric.world_size > 1 else None)


def start_and_meet(strategy: Any, launcher: _SubprocessScriptLauncher, backend: str, seconds: float) -> None:
    """Start this node's processes, where nobody else does, and begin the group; nothing where there is one.

    Lightning then finds both done. It would kill a process because of another one, without a word.

    Args:
        strategy: Lightning's.
        launcher: The strategy's.
        backend: "gloo" or "nccl".
        seconds: See `launch`.

    Raises:
        ConfigurationError: Several nodes that are not told where to meet; and see `launch`.
    """
    if is_in_group():
        return
    environment = launcher.cluster_environment
    check_meeting_place(environment, launcher.num_nodes)
    environment.validate_settings(num_devices=launcher.num_processes, num_nodes=launcher.num_nodes)
    strategy._set_world_ranks()
    rank, count, first_here = strategy.global_rank, strategy.world_size, strategy.global_rank - strategy.local_rank
    # The first listens before it starts the others, so that the port which they are told is the right one.
    global _store, _watch, _lost, _of_this_node
    _of_this_node = range(first_here, first_here + launcher.num_processes)
    _store = listen(environment, count) if rank == 0 and not agent_listens() else None
    if not environment.creates_processes_externally:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else the store's code tells in C++ that it is left
        launcher._call_children_scripts()
    children = {rank + index: child for index, child in enumerate(launcher.procs, start=1)}
    try:
        _store = _store or reach(environment.main_address, environment.main_port, seconds + _age())
        _lost = _meet(_store, rank, count, children, max(seconds, _SECONDS_TO_START) + 2 * _age())
        if _lost is not None:
            raise _lost.error
    except BaseException as error:
        if _store is not None:
            with suppress(RuntimeError):
                _store.set(key_of(rank), record_of(error, None if _lost is None else _lost.rank))
        _see_them_end(children, _lost)
        raise
    _watch = Watch(_store, rank, count, children, _tells)
    _watch.start()
    with _watch.judging(seconds):
        dist.init_process_group(
            backend,
            store=PrefixStore("group", _store),
            rank=rank,
            world_size=count,
            timeout=FOREVER,
            device_id=strategy.root_device if backend == "nccl" else None,
        )


def start_before_launch(launcher: Any) -> None:
    """Have a launcher of Lightning's Trainer start its processes itself: Lightning then watches over none of them.

    Args:
        launcher: Of a strategy that runs the script again.
    """
    launch = launcher.launch

    def start_and_launch(*arguments: Any, **keywords: Any) -> Any:
        environment = launcher.cluster_environment
        if not environment.creates_processes_externally:
            environment.validate_settings(num_devices=launcher.num_processes, num_nodes=launcher.num_nodes)
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
            launcher._call_children_scripts()
        return launch(*arguments, **keywords)

    launcher.launch = start_and_launch


def watch_group(children: Mapping[int, Any]) -> Watch:
    """This process's watch over a group that somebody else has begun, as Lightning's Trainer does.

    Args:
        children: Those that this process has started, by rank.
    """
    global _watch
    if _watch is None:
        store: Any = _get_default_store()
        _watch = Watch(store, dist.get_rank(), dist.get_world_size(), children, _tells)
        _watch.start()
    return _watch


@contextmanager
def ends_with_the_others(processes: Processes, seconds: float) -> Iterator[None]:
    """Within, this process ends when another one does, and by what it tells.

    Args:
        processes: All.
        seconds: How long one may be silent.

    Raises:
        ConfigurationError: Another process was refused something.
        RunError: Another process has ended or does not answer.
    """
    if processes.watch is None:
        yield
        return
    with processes.watch.judging(seconds):
        yield
        processes.barrier()  # who ends after it is not needed any more


def end(error: BaseException) -> None:
    """Tell the others that this process ends by an error, and see that those which it has started end too."""
    global _store, _has_told
    if _watch is not None:
        _watch.end(error)
        _see_them_end(_watch.children, _watch.lost)
        if _watch.rank == 0:
            _watch.wait_for_records(set(_watch.others) - {*_watch.children}, _SECONDS_TO_TELL)
    elif _store is None and _can_tell() and not _has_told:
        _has_told, leads_a_node = True, is_first_of_node() and not is_first_process()
        seconds = _SECONDS_TO_TELL_NODES if leads_a_node else _SECONDS_TO_TELL
        with suppress(RuntimeError):  # nothing answers
            _store = reach(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), seconds)
            _store.set(key_of(_rank()), record_of(error, None))


def is_to_tell() -> bool:
    """Whether the user hears from this process by what it ends, so that it is told once.

    What only this process was refused it tells itself; what all were, and by whom they are left, the first of each
    node does.
    """
    lost = _lost or (None if _watch is None else _watch.lost)
    return is_first_of_node() or _is_alone_with_it() if lost is None else _tells(lost)


def _tells(lost: Lost) -> bool:
    """Whether the user hears from this process that another is lost."""
    leads = is_first_of_node()
    if _of_this_node is not None and lost.rank not in _of_this_node:
        return leads  # it is told on another machine, if at all
    return not lost.is_told and (leads or lost.rank == 0)


def _is_alone_with_it() -> bool:
    """Whether the first process goes on, or ends because of this one."""
    deadline = time.monotonic() + _SECONDS_TO_END
    while _store is not None and time.monotonic() < deadline:
        if (record := _record(0)) is not None:
            return bool(record["because"] == _rank())
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return True


def _record(rank: int) -> dict[str, Any] | None:
    """By what another process has ended, as it told."""
    if _watch is not None:
        return _watch.record(rank)
    with suppress(RuntimeError):
        if _store is not None and _store.check([key_of(rank)]):
            return record_in(_store.get(key_of(rank)))
    return None


def _rank() -> int:
    """Also of a process that has not met the others."""
    return _watch.rank if _watch is not None else int(process_rank())


def _see_them_end(children: Mapping[int, Any], lost: Lost | None) -> None:
    """Those that have told by what they end have seconds to tell the user too; who does not answer has none."""
    deadline = time.monotonic() + _SECONDS_TO_END
    for rank, child in children.items():
        if child.poll() is None and not _record(rank):
            child.send_signal(signal.SIGKILL if lost is not None and lost.rank == rank else signal.SIGTERM)
    while any(child.poll() is None for child in children.values()) and time.monotonic() < deadline:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    for child in children.values():
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)


def leave_group_at_exit() -> None:
    """Have gloo's threads end before the interpreter does.

    Else they may abort the process, whatever its exit code was to be. Lightning sees to it with nccl alone.
    """
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def _leave_group() -> None:
    if _watch is not None:
        if _watch.lost is not None:
            _see_them_end(_watch.children, _watch.lost)  # silos end by themselves alone
        _watch.stop()
    if not is_in_group():
        return
    if not_taken_down:
        # They would be taken down with the group, or at the interpreter's end: nothing of it is to be freed.
        world: Any = dist.group.WORLD
        backends = (world._get_backend(device) for device in world._device_types)
        for kept in (*not_taken_down, world, *backends):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        return
    dist.destroy_process_group()


def _can_tell() -> bool:
    """Whether this process, which has not met the others, knows where they meet, and as whom to speak."""
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        return False
    return agent_listens() if is_first_process() else _rank() != 0


def _meet(store: TCPStore, rank: int, count: int, children: Mapping[int, Any], seconds: float) -> Lost | None:
    """Wait until all processes are there; a process that has ended before.

    Raises:
        RunError: One has not come in time.
    """
    store.set(key_of(rank), "0")
    others = [each for each in range(count) if each != rank]
    there: list[int] = []
    deadline = time.monotonic() + seconds + (0 if rank == 0 else _SECONDS_TO_TELL)
    with suppress(RuntimeError):  # the store is gone
        while time.monotonic() < deadline:
            there = [each for each in others if store.check([key_of(each)])]
            for each in there:
                if record := record_in(store.get(key_of(each))):
                    return lost_by_record(each, record)
            for each, child in children.items():
                if each not in there and (code := child.poll()) is not None:
                    return Lost(each, RunError(words_of_exit(each, code)))
            if rank == 0 and len(there) == len(others):
                store.set(_ALL_ARE_HERE, "1")
            if store.check([_ALL_ARE_HERE]):
                return None
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    missing = ", ".join(str(each) for each in others if each not in there) or "0"
    raise RunError(f"process {missing} has not come, or is gone, after {seconds:.0f} s")


def _age() -> float:
    """Seconds since this process began: the others may take as long to come to where it is."""
    with suppress(OSError):
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - _IMPORTED
