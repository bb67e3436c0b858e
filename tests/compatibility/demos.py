"""Every LightningModule that ships with Lightning's demos, found by walking them, and data for each."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import lightning.pytorch.demos
import torch
from lightning.pytorch.demos.boring_classes import RandomDataset
from lightning.pytorch.demos.transformer import WikiText2
from torch.utils.data import DataLoader, Subset

from fedhq_lightning.data import FederatedDataModule

WORDS = ("the", "a", "cat", "dog", "sees", "hears", "likes", "red", "small", "tree", "house", "runs", "and", "then")


def modules_of_demos() -> list[type[L.LightningModule]]:
    """Of `lightning.pytorch.demos`, and of `lightning.fabric.demos` where a version has it."""
    found: dict[str, type[L.LightningModule]] = {}
    for name in _names():
        for kind in vars(importlib.import_module(name)).values():
            if inspect.isclass(kind) and issubclass(kind, L.LightningModule) and kind is not L.LightningModule:
                found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return [found[name] for name in sorted(found)]


def _names() -> Iterator[str]:
    packages: list[Any] = [lightning.pytorch.demos]
    with suppress(ModuleNotFoundError):
        packages.append(importlib.import_module("lightning.fabric.demos"))
    for package in packages:
        for each in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield each.name


def made(kind: type[L.LightningModule]) -> L.LightningModule:
    """The module with its defaults, but for a vocabulary as small as our text."""
    arguments = inspect.signature(kind).parameters
    return kind(vocab_size=len(WORDS) + 1) if "vocab_size" in arguments else kind()


class DemoData(FederatedDataModule):
    """Clients for modules that bring their own data by `train_dataloader`, with the datasets that those give.

    Args:
        kind: The module's class.
        folder: Where its text may be written: Lightning's reads WikiText2 from a file, which the tests cannot download.
    """

    client_ids = (0, 1, 2)

    def __init__(self, kind: type[L.LightningModule], folder: Path) -> None:
        super().__init__()
        self.loader: Callable[[Any], DataLoader[Any]] = lambda rows: DataLoader(rows, 4)
        if "vocab_size" not in inspect.signature(kind).parameters:
            torch.manual_seed(0)
            self.dataset: Any = RandomDataset(32, 20)
            return
        picks = torch.randint(len(WORDS), (30, 5), generator=torch.Generator().manual_seed(1)).tolist()
        lines = [" ".join(WORDS)] + [" ".join(WORDS[pick] for pick in line) for line in picks]
        folder.mkdir(exist_ok=True)
        (folder / "wikitext-2.txt").write_text("\n".join(lines) + "\n")
        self.dataset = WikiText2(folder, block_size=5, download=False)

    def train_dataloader(self, client_id: Any) -> DataLoader[Any]:
        return self.loader(Subset(self.dataset, range(4 * client_id, 4 * client_id + 4)))

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(Subset(self.dataset, range(12, 20)))

    test_dataloader = val_dataloader
