"""Whatever a client does to a resident module, the next finds it as it was."""

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.local.module_state import load_weights, restore_buffers, restore_requires_grad
from fedhq_lightning.local.pristine import Pristine

from ..small_federation import SmallModule, same_bits


class Keeps(SmallModule):
    """Holds what modules hold beside weights and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.square = nn.Linear(4, 4, bias=False)
        self.seen: list[Any] = []
        self.by_name: dict[str, Any] = {"inner": [1, 2], "pair": ({"deep": 1},)}
        self.queue: deque[int] = deque([1], maxlen=3)
        self.labels = {1, 2}
        self.average = torch.zeros(3)
        self.count = 0


def _freeze(module: Keeps) -> None:
    for parameter in module.net.parameters():
        parameter.requires_grad_(False)


def _swap_forward(module: Keeps) -> None:
    module.forward = lambda inputs: torch.zeros(len(inputs), 3)  # type: ignore[method-assign]  # as a client might


def _swap_class(module: Keeps) -> None:
    class Other(Keeps):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs

    module.__class__ = Other


def _swap_layer(module: Keeps) -> None:
    module.net[0] = nn.Identity()


def _hook(module: Keeps) -> None:
    module.net[1].register_forward_hook(lambda part, given, output: output * 0)
    module.register_state_dict_post_hook(lambda part, state, prefix, metadata: state.clear())


def _fill(module: Keeps) -> None:
    module.seen.append(torch.ones(2))
    module.by_name["inner"].append(3)
    module.by_name["pair"][0]["deep"] = 2
    module.by_name["new"] = 1
    module.queue.extend([2, 3, 4])
    module.labels.add(3)
    module.average += 1
    module.count += 1000


def _register(module: Keeps) -> None:
    module.register_buffer("more", torch.ones(2))
    module.more_layers = nn.Linear(2, 2)
    module.alone = nn.Parameter(torch.ones(1))


def _reshape(module: Keeps) -> None:
    module.net[0].weight.data = torch.zeros(33, 12)


def _transpose(module: Keeps) -> None:
    module.square.weight.data = module.square.weight.data.t()


def _double(module: Keeps) -> None:
    module.double()


def _keep_gradients(module: Keeps) -> None:
    module.net[0].weight.grad = torch.ones_like(module.net[0].weight)
    module.net[0].weight.register_hook(lambda gradient: gradient * 0)
    module.net[2].weight.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))


DEEDS: list[Callable[[Keeps], object]] = [
    _freeze,
    _swap_forward,
    _swap_class,
    _swap_layer,
    _hook,
    _fill,
    _register,
    _reshape,
    _transpose,
    _double,
    _keep_gradients,
    lambda module: module.eval(),
    lambda module: module.net.eval(),
    lambda module: delattr(module, "net"),
    lambda module: delattr(module, "seen"),
    lambda module: setattr(module, "seen", None),
    lambda module: module.accuracy.update(torch.eye(3), torch.arange(3)),
    lambda module: module.norm.running_var.fill_(-1.0),
    lambda module: setattr(module.norm, "running_mean", torch.zeros(4, dtype=torch.int64)),
    lambda module: setattr(module.norm, "momentum", 1.0),
    lambda module: setattr(module, "norm", None),
]


def _attributes(module: nn.Module) -> Any:
    """Everything that can be told of a module, as plain values."""

    def told(value: Any) -> Any:
        if isinstance(value, Tensor):
            return str(value.dtype), tuple(value.shape), value.stride(), value.requires_grad, value.tolist()
        if isinstance(value, dict):
            return [(str(key), told(each)) for key, each in value.items()]
        if isinstance(value, list | tuple | set | deque):
            return [told(each) for each in value]
        return value if isinstance(value, int | float | str | None) else type(value).__name__

    return [
        (name, type(part).__name__, told(vars(part))) for name, part in module.named_modules(remove_duplicate=False)
    ]


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_the_next_client_finds_it_as_it_was(deed: Callable[[Keeps], object]) -> None:
    template = Keeps()
    resident = copy.deepcopy(template)
    before, state = _attributes(resident), template.state_dict()
    pristine = Pristine(resident)
    for _ in range(2):
        deed(resident)
        pristine.restore()
        restore_buffers(resident, template, torch.device("cpu"))
        restore_requires_grad(resident, template)
        load_weights(resident, state)
        assert _attributes(resident) == before
        assert same_bits(resident.state_dict(), state)
        assert all(each.grad is None and not each._backward_hooks for each in resident.parameters())
        assert not any(each._post_accumulate_grad_hooks for each in resident.parameters())


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_with_its_weights_where_nothing_loads_them_anew(deed: Callable[[Keeps], object]) -> None:
    module, template = Keeps(), Keeps()
    before, state = _attributes(module), copy.deepcopy(module.state_dict())
    pristine = Pristine(module, with_weights=True)
    for _ in range(2):
        for each in [*module.parameters(), *module.buffers()]:
            each.data.fill_(3)
        deed(module)
        pristine.restore()
        restore_requires_grad(module, template)
        assert _attributes(module) == before
        assert same_bits(module.state_dict(), state)


def test_parameters_stay_the_same_objects() -> None:
    module = Keeps()
    parameters = list(module.parameters())
    pristine = Pristine(module)
    _double(module)
    pristine.restore()
    assert all(now is then for now, then in zip(module.parameters(), parameters, strict=True))


def test_what_is_large_is_left_alone() -> None:
    module = Keeps()
    module.vocabulary = dict.fromkeys(range(5000), 0)
    pristine = Pristine(module)
    module.vocabulary[0] = 1
    pristine.restore()
    assert module.vocabulary[0] == 1
