"""One contestant of peers.py, in its own environment: trains the rounds of one shape, and prints a JSON line for each.

    python benchmarks/peers_contestants.py CONTESTANT SHAPE PROCESSES DATA SCRATCH

SHAPE is the JSON of a `Shape`; DATA the folder of the images; SCRATCH one for whatever is written. Every contestant is
set up as its own documentation and benchmarks do it where speed is wanted, and evaluates nothing.
"""

from __future__ import annotations

import copy
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import peers_runs as shared
from peers_runs import Shape

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Job:
    """What is to be trained, and where."""

    shape: Shape
    processes: int
    data: Path
    scratch: Path


class Report:
    """Prints when rounds begin and end; every process of a contestant that trains prints its own steps."""

    def begin(self, model: nn.Module) -> None:
        """The first round begins now."""
        self._line(event="begin", time=time.time(), parameters=sum(each.numel() for each in model.parameters()))
        self._started = time.perf_counter()

    def round(self, steps: int) -> None:
        """A round has ended, and the next one begins."""
        now = time.perf_counter()
        self._line(event="round", seconds=now - self._started, steps=steps)
        self._started = now

    def value(self, **values: Any) -> None:
        """Something else to tell."""
        self._line(event="value", **values)

    def _line(self, **values: Any) -> None:
        # One write, so that lines of several processes do not mix.
        sys.stdout.write(json.dumps({"rank": int(os.environ.get("RANK", 0)), **values}) + "\n")
        sys.stdout.flush()


def bare(job: Job, report: Report) -> None:
    """The loop that one would write without a framework; several processes share a cohort and add up with gloo."""
    import torch
    import torch.distributed as dist

    shape, rank = job.shape, int(os.environ.get("RANK", 0))
    if job.processes > 1:
        dist.init_process_group("gloo")
    clients = shared.clients_of(shape, job.data)
    chosen = random.Random(shared.SEED)  # the same cohorts on every process
    torch.manual_seed(shared.SEED)
    model = shared.model_of(shape)
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    report.begin(model)
    for _ in range(1 + shape.rounds):
        total, steps = torch.zeros_like(weights), 0
        for client in chosen.sample(range(shape.clients), shape.cohort)[rank :: job.processes]:
            torch.nn.utils.vector_to_parameters(weights.clone(), model.parameters())
            steps += shared.fit(shape, model, *clients[client])
            total += torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        if job.processes > 1:
            dist.all_reduce(total)
        weights = total / shape.cohort
        report.round(steps)
    if job.processes > 1:
        dist.destroy_process_group()


def pfl(job: Job, report: Report) -> None:
    """As `benchmarks/image_classification/pytorch/train.py` of pfl-research, its users' tensors made beforehand."""
    import numpy as np
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByUser
    from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    shape, taken = job.shape, [0]
    np.random.seed(shared.SEED)  # the same cohorts on every process
    torch.manual_seed(shared.SEED)
    model = shared.model_of(shape)

    def loss(self: nn.Module, images: Tensor, labels: Tensor, eval: bool = False) -> Tensor:
        self.train(not eval)
        taken[0] += 1
        return torch.nn.functional.cross_entropy(self(images), labels)

    # What pfl asks of a module; the metrics are those of evaluations, of which there are none.
    functions: dict[str, Callable[..., Any]] = {"loss": loss, "metrics": lambda self, *batch, **options: {}}
    for name, function in functions.items():
        setattr(model, name, MethodType(function, model))

    class Clock(TrainingProcessCallback):  # type: ignore[misc]  # pfl is not installed where types are checked
        def on_train_begin(self, *, model: Any) -> Any:
            report.begin(model.pytorch_model)
            return Metrics()

        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            report.round(taken[0])
            taken[0] = 0
            return False, Metrics()

    clients = [PyTorchTensorDataset(each) for each in shared.clients_of(shape, job.data)]
    sampler = get_user_sampler("minimize_reuse", list(range(shape.clients)))
    users = FederatedDataset(clients.__getitem__, sampler)
    FederatedAveraging().run(
        NNAlgorithmParams(1 + shape.rounds, 10**9, train_cohort_size=shape.cohort, val_cohort_size=0),
        SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByUser()]),
        PyTorchModel(model, torch.optim.SGD, torch.optim.SGD(model.parameters(), 1.0)),
        NNTrainHyperParams(
            local_learning_rate=shape.learning_rate, local_num_epochs=shape.epochs, local_batch_size=shape.batch_size
        ),
        callbacks=[Clock()],
    )


def flower(job: Job, report: Report) -> None:
    """FedAvg of `flwr.serverapp` over the simulation runtime with Ray: as many actors of one CPU as processes."""
    import torch
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    shape, data = job.shape, job.data
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        model = shared.kept_model(shape)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        images, labels = shared.clients_of(shape, data)[int(context.node_config["partition-id"])]
        steps = shared.fit(shape, model, images, labels)
        metrics = MetricRecord({"num-examples": len(labels), "steps": steps})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    class Timed(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            arrays, metrics = super().aggregate_train(server_round, replies)
            report.round(sum(steps_of(each) for each in replies if each.has_content()))
            return arrays, metrics

    def steps_of(reply: Message) -> int:
        steps = reply.content.metric_records["metrics"]["steps"]
        assert isinstance(steps, int)
        return steps

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.manual_seed(shared.SEED)
        model = shared.model_of(shape)
        # No fewer clients than there are: the first round would else begin, and choose, while they register.
        strategy = Timed(
            fraction_train=shape.cohort / shape.clients,
            fraction_evaluate=0.0,
            min_train_nodes=shape.cohort,
            min_available_nodes=shape.clients,
        )
        while len(list(grid.get_node_ids())) < shape.clients:
            time.sleep(0.01)
        report.begin(model)
        strategy.start(
            grid, ArrayRecord(model.state_dict()), num_rounds=1 + shape.rounds, train_config=ConfigRecord({})
        )

    ray = {"num_cpus": job.processes, "_temp_dir": str(job.scratch), "_node_ip_address": "127.0.0.1"}
    backend: Any = {"init_args": ray, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, num_supernodes=shape.clients, backend_config=backend)


class BlazeModels:
    """BlazeFL's selector of models: copies of one, which is faster than to draw initial weights for every client."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def select_model(self, model_name: str) -> nn.Module:
        """A copy of the shape's model, whatever its name."""
        return copy.deepcopy(shared.kept_model(self._shape))


class BlazeData:
    """BlazeFL's data set. It travels to a worker with every client, so it holds only where the images are."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self._shape, self._folder = shape, folder

    def get_dataloader(self, type_: Any, cid: int, batch_size: int, generator: Any) -> Any:
        """A client's batches; workers are forks of a process that has mapped the images."""
        return shared.loader_of(self._shape, *shared.clients_of(self._shape, self._folder)[cid], generator)

    def set_dataset(self, type_: Any, cid: int, dataset: Any) -> None:
        """Nothing: no client changes its data."""


def blazefl(job: Job, report: Report) -> None:
    """As `benchmarks/blazefl-case/main.py` of BlazeFL in its process mode with shared memory.

    Its pool is made of forks, which start faster than the benchmark's spawned processes; those are for CUDA's sake.
    """
    import torch
    import torch.multiprocessing as mp
    from blazefl.contrib import FedAvgBaseServerHandler, FedAvgProcessPoolClientTrainer
    from blazefl.core import IPCMode
    from blazefl.reproducibility import setup_reproducibility

    shape = job.shape
    mp.set_start_method("fork")
    setup_reproducibility(shared.SEED)
    torch.manual_seed(shared.SEED)
    # What torch loads with the first local fit, every fork of every round would else load anew.
    shared.fit(shape, shared.model_of(shape), *shared.clients_of(shape, job.data)[0])
    common = {
        **{"model_selector": BlazeModels(shape), "model_name": "CNN", "dataset": BlazeData(shape, job.data)},
        **{"device": "cpu", "num_clients": shape.clients, "batch_size": shape.batch_size, "seed": shared.SEED},
    }
    handler = FedAvgBaseServerHandler(
        global_round=1 + shape.rounds, sample_ratio=shape.cohort / shape.clients, **common
    )
    trainer = FedAvgProcessPoolClientTrainer(
        share_dir=job.scratch / "share",
        state_dir=job.scratch / "state",
        epochs=shape.epochs,
        lr=shape.learning_rate,
        num_parallels=job.processes,
        ipc_mode=IPCMode.SHARED_MEMORY,
        **common,
    )
    report.begin(handler.model)
    while not handler.if_stop():
        cohort = handler.sample_clients()
        trainer.local_process(handler.downlink_package(), cohort)
        uploads = trainer.uplink_package()
        for package in uploads:
            handler.load(package)
        report.round(sum(package.data_size for package in uploads) // shape.batch_size)


def ours(job: Job, report: Report, mode: str, cifar10: str | None = None, seed: int = shared.SEED) -> None:
    """FederatedTrainer with every client in one mode; with CIFAR-10, its test accuracy at the end as well."""
    import lightning as L
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from fedhq_lightning import FederatedTrainer
    from fedhq_lightning.callbacks import FixedAllocator, RoundCallback
    from fedhq_lightning.data import FederatedDataModule, HuggingFaceDataModule
    from fedhq_lightning.run.records import RoundRecord
    from fedhq_lightning.types import Mode

    shape = job.shape

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = shared.model_of(shape)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return torch.nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            hits = self.layers(batch[0]).argmax(1) == batch[1]
            self.log("accuracy", hits.float().mean(), batch_size=len(hits))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=shape.learning_rate)

    class Data(FederatedDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.held_out: Any = []
            if cifar10 is None:
                self.clients = shared.clients_of(shape, job.data)
                return
            train, held_out = (
                part.__getitems__(list(range(len(part))))
                for part in HuggingFaceDataModule(cifar10, image_key="img").read()
            )
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
            users = torch.split(order, shape.examples)[: shape.clients]
            self.clients = [(train.images[rows], train.labels[rows]) for rows in users]
            self.held_out = DataLoader(TensorDataset(held_out.images, held_out.labels), batch_size=500)

        @property
        def client_ids(self) -> range:
            return range(shape.clients)

        def train_dataloader(self, client_id: int) -> Any:  # type: ignore[override]  # numbers are its only ids
            return shared.loader_of(shape, *self.clients[client_id])

        def val_dataloader(self) -> Any:
            return self.held_out

        def num_examples(self, client_id: int) -> int:  # type: ignore[override]  # as above
            return shape.examples

    class Clock(RoundCallback):
        def on_round_end(self, trainer: Any, record: RoundRecord) -> None:
            if not trainer.is_global_zero:
                return
            if record.round == 0:
                report.begin(module)
            else:
                report.round(sum(each.num_steps for each in record.clients if each.status == "ok"))
            if record.round == 1 + shape.rounds and cifar10 is not None:
                report.value(**{name: record.metrics[f"{name}/accuracy"] for name in ("fp", "quantized")})

    torch.manual_seed(seed)
    module = Module()
    modes: dict[str, Mode] = {"fp": "fp", "ptq": "ptq", "qat": "qat"}
    trainer = FederatedTrainer(
        max_rounds=1 + shape.rounds,
        clients_per_round=shape.cohort,
        local_epochs=shape.epochs,
        scheme=None if mode == "fp" and cifar10 is None else shared.SCHEME,
        callbacks=[FixedAllocator(modes[mode]), Clock()],
        logger=False,
        accelerator="cpu",
        devices=job.processes,
        eval_every_n_rounds=1 + shape.rounds,
        checkpoint_every_n_rounds=1 + shape.rounds,  # after the clock has stopped
        enable_progress_bar=False,
        seed=seed,
        default_root_dir=job.scratch / "runs",
    )
    trainer.writes_model = False
    trainer.fit(module, Data())


def main(contestant: str, shape: str, processes: str, data: str, scratch: str, *more: str) -> None:
    """Run one contestant; `more` is of ours alone: CIFAR-10's name or folder, and a seed."""
    job, report = Job(Shape(**json.loads(shape)), int(processes), Path(data), Path(scratch)), Report()
    name, _, mode = contestant.partition("-")
    if name == "ours":
        cifar10, seed = more or (None, shared.SEED)
        ours(job, report, mode, cifar10, int(seed))
    else:
        {"bare": bare, "pfl": pfl, "flower": flower, "blazefl": blazefl}[name](job, report)


if __name__ == "__main__":
    main(*sys.argv[1:])
