"""Two nodes on one machine: as one process bitwise, and told on both what keeps one of them out."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fedhq_lightning.cli.main import main

from ..programs import Program
from ..small_recipe import write_recipe
from ..trainer.conftest import make_quick
from .test_ranks import write_recipe_of_two
from .test_signals import AS_MODULE, only_run, weights

SECONDS = 60.0
"""Within which both nodes tell what is wrong."""

Environments = Callable[[int, int], dict[str, str]]


def by_lightning(node: int, port: int) -> dict[str, str]:
    """The command typed on each node."""
    return {"NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def by_slurm(node: int, port: int) -> dict[str, str]:
    """What `srun` gives the task of each node."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "fed", "SLURM_NNODES": "2", "SLURM_NODELIST": "localhost"}
    tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": str(node), "SLURM_LOCALID": "0"}
    return job | tasks | {"SLURM_NODEID": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def run_nodes(
    folder: Path,
    environments: Environments,
    recipe: Path,
    *of_second: str,
    port: int | None = None,
    script: str | None = None,
    count: int = 2,
    waited_for: Sequence[int] = (0, 1),
) -> list[tuple[int | None, str, str]]:
    """Exit code, output and errors of each node that is waited for, all of them in folders of their own.

    Args:
        folder: Gets these folders.
        environments: Of each node.
        recipe: Of both.
        of_second: Arguments that node 1 has beside.
        port: At which they meet; one that is free.
        script: What runs in place of the command.
        count: Nodes.
        waited_for: Nodes that end by themselves.
    """
    port = port or free_port()
    nodes: list[Program] = []
    for node in range(count):
        place = folder / f"node-{node}"
        place.mkdir()
        if script is not None:
            (folder / "script.py").write_text(script)
        program = AS_MODULE if script is None else (str(folder / "script.py"),)
        arguments = ["run", str(recipe), f"--trainer.num_nodes={count}", *(of_second if node else ())]
        nodes.append(Program(*program, *arguments, cwd=place, env={**os.environ, **environments(node, port)}))
    try:
        printed = [nodes[node].communicate(SECONDS) for node in waited_for]
    finally:
        for each in nodes:
            each.kill()
    for node in {*range(count)} - {*waited_for}:
        nodes[node].communicate(SECONDS)
    return [(nodes[node].returncode, *texts) for node, texts in zip(waited_for, printed, strict=True)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "mine.yaml", {"trainer.enable_progress_bar": False})


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        assert main(["run", str(recipe), f"--trainer.default_root_dir={folder}"]) == 0
    return only_run(folder)


@pytest.mark.parametrize("environments", [by_lightning, pytest.param(by_slurm, marks=pytest.mark.corner)])
def test_two_nodes_are_as_one_process(environments: Environments, recipe: Path, whole: Path, tmp_path: Path) -> None:
    first, second = run_nodes(tmp_path, environments, recipe)
    assert (first[0], first[2]) == (0, ""), first
    assert second == (0, "", "")
    assert weights(only_run(tmp_path / "node-0" / "runs")) == weights(whole)
    assert os.listdir(tmp_path / "node-1") == [], "the first process alone writes"


REFUSED = {
    "recipe": (
        "",
        ("--trainer.local_steps=3",),
        r"process 1 was given something else than process 0: trainer.local_steps is 3 there, 2 in process 0; every",
    ),
    "version": (
        """
from fedhq_lightning.federated import same_everywhere
versions = same_everywhere.versions
same_everywhere.versions = lambda: versions() | {"torch": "2.0"}
""",
        (),
        r"process 1 was given something else than process 0: the version of torch is '2.0' there, '[^']+' in process 0",
    ),
    "no-data": (
        """
from fedhq_lightning.data import Digits
from fedhq_lightning.errors import ConfigurationError
def prepare_data(self):
    raise ConfigurationError("no file here")
Digits.prepare_data = prepare_data
""",
        (),
        "no file here",
    ),
}
ON_SECOND = """
import os, sys
from fedhq_lightning.cli.main import main
if os.environ["NODE_RANK"] == "1":
    exec({!r})
sys.exit(main())
"""


@pytest.mark.corner
@pytest.mark.parametrize("name", list(REFUSED))
def test_a_node_that_does_not_fit(name: str, recipe: Path, tmp_path: Path) -> None:
    """Both say why, each to its own user."""
    before, of_second, words = REFUSED[name]
    ends = run_nodes(tmp_path, by_lightning, recipe, *of_second, script=ON_SECOND.format(before))
    for node, (code, _, errors) in enumerate(ends):
        assert code == 2, ends
        assert re.match(f"fedhq: {'process 1: ' * node}recipe mine: {words}", errors), ends
        assert errors.count("\n") == 1
    assert not list(tmp_path.glob("node-*/runs/mine/*"))


@pytest.mark.slow
def test_a_port_that_another_program_has(recipe: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        first, second = run_nodes(tmp_path, by_lightning, recipe, port=port)
    assert first[0] == 2
    assert first[2].startswith(f"fedhq: recipe mine: MASTER_PORT {port}: "), first
    assert second[0] == 1
    assert re.fullmatch(rf"fedhq: process 1: process 0 was not reached at 127.0.0.1:{port} .*\n", second[2]), second
    assert not list(tmp_path.glob("node-*/runs/mine/*"))


@pytest.mark.corner
def test_nodes_that_do_not_know_where_to_meet(recipe: Path, tmp_path: Path) -> None:
    for code, _, errors in run_nodes(tmp_path, lambda node, port: {"NODE_RANK": str(node)}, recipe):
        assert code == 2
        assert re.match(r"fedhq: .*num_nodes 2: MASTER_ADDR and MASTER_PORT not set; .*\n$", errors), errors


@pytest.mark.corner
def test_client_state_on_nodes_without_a_common_folder(recipe: Path, tmp_path: Path) -> None:
    """The second would take the state that the first has written for none."""
    path = write_recipe(tmp_path / "scaffold.yaml", {"trainer.aggregator": "Scaffold"})
    for code, _, errors in run_nodes(tmp_path, by_lightning, path):
        assert code == 2
        assert re.match(r"fedhq: .*process 1 does not see runs/.*all nodes share, by its whole path\n$", errors), errors


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGSTOP", "SIGKILL"])
def test_a_node_is_gone_in_a_round(how: str, tmp_path: Path) -> None:
    """Each of the others says so, to its own user."""
    path = tmp_path / "mine.yaml"
    more = {"trainer.devices": 1, "trainer.default_root_dir": str(tmp_path / "runs")}
    write_recipe_of_two(path, how, 1, **more)
    ends = run_nodes(tmp_path, by_lightning, path, count=3, waited_for=(0, 2))
    for who, (code, _, errors) in zip(("", "process 2: "), ends, strict=True):
        assert code == 1, ends
        assert re.match(rf"fedhq: {who}process 1 (has not answered for 2 s|is gone)", errors), ends
        assert errors.count("process 1 ") == 1


@pytest.mark.slow
def test_two_agents_of_torchrun(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """The line that docs/scaling.md has, on two loopback addresses."""
    port, agents = free_port(), []
    for node in (0, 1):
        place = tmp_path / f"node-{node}"
        place.mkdir()
        options = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", f"--master-port={port}"]
        options += ["--master-addr=127.0.0.1", f"--local-addr=127.0.0.{1 + node}"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, *AS_MODULE, "run", str(recipe)]
        paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths}
        agents.append(subprocess.Popen([*command, "--trainer.num_nodes=2"], cwd=place, env=environment))
    try:
        assert [agent.wait(240) for agent in agents] == [0, 0]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    assert weights(only_run(tmp_path / "node-0" / "runs")) == weights(whole)
    assert os.listdir(tmp_path / "node-1") == []
