"""A resident module as it was before its first client: what one client's fit leaves there, the next must not meet.

Clients train one after another in the same module, and their code may do anything to it: freeze layers, put another
`forward` on the instance, register hooks, keep a list. With what stays, bits would depend on who trained before in the
same process. Where weights and buffers are loaded anew for each client (`module_state`), all else is put back here.

What is compared is compared by identity, so that a module that nobody touched costs some microseconds a layer.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set, deque)
_MOST_ITEMS = 1000
"""A larger container, such as a vocabulary, is taken to stay as it is."""
_MOST_VALUES = 2**20
"""Likewise a tensor that is neither parameter nor buffer."""


class Pristine:
    """Remembers a module, and puts it back.

    Put back are, in the module and all its parts: attributes, the parts themselves, hooks, training or evaluation mode,
    what containers hold (of each other, too), values of tensors among the attributes, and of parameters which tensor
    they are, with its shape and dtype, without a gradient. What other objects hold stays.

    Args:
        module: As it shall be found by every client.
        with_weights: Put back buffers, and the values of buffers and parameters, too.
    """

    def __init__(self, module: nn.Module, with_weights: bool = False) -> None:
        parts = {id(part): part for _, part in module.named_modules(remove_duplicate=False)}
        self._parts = [(part, type(part), list(vars(part)), list(vars(part).values())) for part in parts.values()]
        parameters = {
            id(each): each for part in parts.values() for each in part._parameters.values() if each is not None
        }
        self._parameters = [(each, each.detach()) for each in parameters.values()]
        self._empty: list[Any] = []
        self._containers: list[tuple[Any, list[Any]]] = []
        self._seen: set[int] = set()
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        for _, _, names, values in self._parts:
            # Buffers that are made anew for each client have their names put back with them.
            self._remember(
                value for name, value in zip(names, values, strict=True) if with_weights or name != "_buffers"
            )
        self._weights = [*module.parameters(), *module.buffers()] if with_weights else []
        self._weights_values = [each.detach().clone() for each in self._weights]

    def restore(self) -> None:
        """Put the module back."""
        for part, kind, names, values in self._parts:
            held = vars(part)
            if len(held) != len(values) or not all(map(operator.is_, held.values(), values)):
                held.clear()
                held.update(zip(names, values, strict=True))
            if type(part) is not kind:
                part.__class__ = kind
        if any(map(len, self._empty)):  # nearly all containers: a layer's hooks
            for container in self._empty:
                container.clear()
        for container, items in self._containers:
            if len(container) != len(items) or not all(map(operator.is_, _items(container), items)):
                _refill(container, items)
        for parameter, value in self._parameters:
            parameter.data = value
            parameter.grad = None
            parameter._backward_hooks = parameter._post_accumulate_grad_hooks = None
        for index, (tensor, version, value) in enumerate(self._tensors):
            if tensor._version != version:
                with torch.no_grad():
                    tensor.copy_(value)
                self._tensors[index] = tensor, tensor._version, value
        if self._weights:
            with torch.no_grad():  # also what a change through `data` leaves, which no version tells
                torch._foreach_copy_(self._weights, self._weights_values)

    def _remember(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, _CONTAINERS):
                if id(value) in self._seen or len(value) > _MOST_ITEMS:
                    continue
                self._seen.add(id(value))
                if value:
                    self._containers.append((value, list(_items(value))))
                    self._remember(value.values() if isinstance(value, dict) else value)
                else:
                    self._empty.append(value)
            elif isinstance(value, tuple) and len(value) <= _MOST_ITEMS:
                self._remember(value)
            elif _is_plain_tensor(value):
                self._tensors.append((value, value._version, value.detach().clone()))


def _items(container: Any) -> Iterator[Any]:
    """What is in it, one after the other; of a dict the keys first."""
    if isinstance(container, dict):
        yield from container
        yield from container.values()
    else:
        yield from container


def _refill(container: Any, items: list[Any]) -> None:
    container.clear()
    if isinstance(container, dict):
        half = len(items) // 2
        container.update(zip(items[:half], items[half:], strict=True))
    elif isinstance(container, set):
        container.update(items)
    else:
        container.extend(items)


def _is_plain_tensor(value: Any) -> bool:
    return type(value) is Tensor and not value.is_inference() and value.numel() <= _MOST_VALUES
