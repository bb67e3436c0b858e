"""Parts of a user's module that a client runs otherwise than they are written, or that are in the way of copies."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.local.lazy_layers import build_lazy_layers, lazy_names, take_layers
from fedhq_lightning.local.module_checks import copied, keep_batches_apart, run_eagerly
from fedhq_lightning.types import FitOptions

from ..federated.client_fits import client_trainer, loader, weights
from ..small_federation import NUM_FEATURES, SmallModule, same_bits


def test_batch_statistics_are_never_those_of_other_processes(tmp_path: Path) -> None:
    class Normed(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(1, nn.BatchNorm1d(16))

    plain, synchronized = Normed(), Normed()
    synchronized.net = nn.SyncBatchNorm.convert_sync_batchnorm(synchronized.net)
    keep_batches_apart(synchronized)
    client_trainer(plain).fit(loader())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        client_trainer(synchronized).fit(loader())  # torch's own would look for the others, on a GPU alone
    finally:
        torch.distributed.destroy_process_group()
    assert same_bits(weights(plain), weights(synchronized))


def test_compiled_parts_run_eagerly_in_copies_too() -> None:
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        calls.append(1)
        return graph

    module = SmallModule()
    names = list(module.state_dict())
    module.net = torch.compile(module.net, backend=backend)  # type: ignore[assignment]  # it is called like one
    with pytest.warns(UserWarning, match="SmallModule: net is wrapped by torch"):
        run_eagerly(module)
    copied(copied(module))(torch.zeros(2, NUM_FEATURES))
    assert not calls
    assert [name.replace("_orig_mod.", "") for name in module.state_dict()] == names


def test_lazy_layers_leave_no_other_trace_of_the_batch() -> None:
    class Lazy(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            shared = nn.LazyLinear(NUM_FEATURES)
            self.net = nn.Sequential(nn.BatchNorm1d(NUM_FEATURES), nn.Dropout(0.5), shared, shared, nn.Linear(12, 3))
            self.seen: list[int] = []

        def training_step(self, batch: object, batch_idx: int) -> object:
            self.seen.append(batch_idx)
            return super().training_step(batch, batch_idx)

    module, user = Lazy(), Lazy()
    build_lazy_layers(module, FitOptions(), lambda: next(iter(loader())))
    assert type(module.net[2]) is nn.Linear
    assert module.net[2] is module.net[3]
    assert module.training
    assert module.net[2].training
    assert (module.seen, module._trainer) == ([], None)
    assert module.net[0].num_batches_tracked == 0
    assert lazy_names(user) == ["net.2", "net.3"]
    take_layers(user, copied(module))
    assert lazy_names(user) == []
    assert user.net[2] is user.net[3]


def test_what_cannot_be_copied_is_named_with_its_place() -> None:
    module = SmallModule()
    module.net[0].handle = iter(loader())  # type: ignore[assignment]  # any object
    with pytest.raises(ConfigurationError, match=r"SmallModule: self\.net\.0\.handle \(_SingleProcess.* cannot be cop"):
        copied(module)
