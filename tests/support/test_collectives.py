"""What processes say to each other: the same on each, whoever began the group."""

import json
from typing import Any

import pytest
import torch

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.collectives import Processes

from ..programs import Program

PROCESS = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.collectives import Processes

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
group, alone = Processes(torch.device("cpu")), Processes(None)

def refuse():
    raise ConfigurationError("no such folder")

try:
    group.from_first(refuse)
    refusal = ""
except ConfigurationError as error:
    refusal = str(error)
weights = torch.full((2, 3), rank + 0.1, dtype=torch.bfloat16)
group.copy_from_first(weights)
told = {
    "who": [group.rank, group.count, alone.rank, alone.count],
    "bytes": [each.decode() for each in group.gather_bytes(b"x" * (3 * rank))],
    "bytes on first": [each.decode() for each in group.gather_bytes_on_first(b"y" * (1 + rank))],
    "values": group.gather({"rank": rank, "none": None}),
    "alone": alone.gather(rank),
    "broadcast": group.broadcast(rank + 5),
    "from first": group.from_first(lambda: f"done by {rank}"),
    "refusal": refusal,
    "sum": group.sum_integers(torch.tensor([2**60 + rank, -rank])).tolist(),
    "weights": weights.tolist(),
}
group.barrier()
(folder / f"told by {rank}").write_text(json.dumps(told))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("group")
    script = folder / "process.py"
    script.write_text(PROCESS)
    both = [Program(str(script), str(rank), str(folder)) for rank in range(2)]
    printed = [process.communicate(240) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    return [json.loads((folder / f"told by {rank}").read_text()) for rank in range(2)]


def test_two_processes_know_of_each_other(told: list[dict[str, Any]]) -> None:
    assert [each["who"] for each in told] == [[0, 2, 0, 1], [1, 2, 0, 1]]
    assert [each["alone"] for each in told] == [[0], [1]]


def test_what_is_gathered_is_there_by_rank(told: list[dict[str, Any]]) -> None:
    for each in told:
        assert each["bytes"] == ["", "xxx"]
        assert each["values"] == [{"rank": 0, "none": None}, {"rank": 1, "none": None}]
    assert [each["bytes on first"] for each in told] == [["y", "yy"], []]


def test_the_first_speaks_for_all_and_its_refusal_too(told: list[dict[str, Any]]) -> None:
    for each in told:
        assert (each["broadcast"], each["from first"], each["refusal"]) == (5, "done by 0", "no such folder")


def test_integers_are_summed_exactly_and_bits_copied(told: list[dict[str, Any]]) -> None:
    for each in told:
        assert each["sum"] == [2**61 + 1, -1]
        assert torch.equal(torch.tensor(each["weights"]), torch.full((2, 3), 0.1).bfloat16().float())


def test_one_process_talks_to_nobody() -> None:
    processes, tensor = Processes(torch.device("cpu")), torch.tensor([3])
    assert (processes.rank, processes.count) == (0, 1)
    assert processes.gather_bytes_on_first(b"z") == [b"z"]
    assert processes.sum_integers(tensor) is tensor
    with pytest.raises(ConfigurationError, match="no"):
        processes.from_first(lambda: (_ for _ in ()).throw(ConfigurationError("no")))
