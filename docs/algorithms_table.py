"""The table of docs/algorithms.md, from the code.

python docs/algorithms_table.py            writes it into the page
"""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fedhq_lightning import FederatedTrainer
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated import algorithms
from fedhq_lightning.federated.algorithms import Aggregator
from fedhq_lightning.federated.algorithms.aggregator import ClientStart
from fedhq_lightning.federated.algorithms.asynchronous import AsynchronousAggregator
from fedhq_lightning.federated.privacy.mechanisms import CentralPrivacy
from fedhq_lightning.federated.robust.coordinate_median import CoordinateMedian
from fedhq_lightning.federated.secure.secure_aggregation import SecureAggregation

HALF_IN_QAT = " --trainer.callbacks=FixedAllocator --trainer.callbacks.allocation=0.5"
"""In place of the recipe's allocator, which plans by the slowest client of a round."""
PAGE = Path(__file__).parent / "algorithms.md"
TRIED: Mapping[str, str] = {
    "FedAdagrad": "--trainer.aggregator=FedAdagrad",
    "FedAdam": "--trainer.aggregator=FedAdam",
    "FedAsync": "--trainer.aggregator=FedAsync --trainer.uplink=weights" + HALF_IN_QAT,
    "FedAvg": "--trainer.aggregator=FedAvg",
    "FedAvgM": "--trainer.aggregator=FedAvgM",
    "FedBuff": "--trainer.aggregator=FedBuff --trainer.aggregator.buffer_size=2" + HALF_IN_QAT,
    "FedDyn": "--trainer.aggregator=FedDyn",
    "FedNova": "--trainer.aggregator=FedNova",
    "FedOpt": "--trainer.aggregator=FedOpt --trainer.aggregator.optimizer=torch.optim.AdamW",
    "FedProx": "--trainer.aggregator=FedProx --trainer.aggregator.mu=0.1",
    "FedYogi": "--trainer.aggregator=FedYogi",
    "Scaffold": "--trainer.aggregator=Scaffold",
}
"""What is added to `fedhq run digits-smoke` to try each."""
WITH: Mapping[str, dict[str, Any]] = {
    "`delta` on a grid": {"scheme": "w4a8", "uplink": "delta"},
    "`weights` on a grid": {"scheme": "w4a8", "uplink": "weights"},
    "secure aggregation": {"secure_aggregation": SecureAggregation(), "max_norm_ratio": None},
    "client-level privacy": {"privacy": CentralPrivacy(1.0, 1.0, 0.01)},
    "robust rules": {"robust_rule": CoordinateMedian()},
}
_ARGUMENTS: Mapping[str, Callable[[], Aggregator]] = {"FedOpt": lambda: algorithms.FedOpt(torch.optim.AdamW)}
_BEGIN, _END = "<!-- table -->\n", "<!-- end of table -->\n"


def names() -> list[str]:
    """Of all algorithms."""
    return [name for name in algorithms.__all__ if not inspect.isabstract(getattr(algorithms, name))]


def table() -> str:
    """A row for each algorithm, in Markdown."""
    columns = ["algorithm", "paper", "a client keeps", "beside the model, down", "up", *WITH, "a round waits", "add"]
    rows = [" | ".join(_row(name)) for name in names()]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {row} |" for row in rows)]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page, with the table as it is now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    return f"{before}{_BEGIN}{table()}{_END}{rest.partition(_END)[2]}"


def _row(name: str) -> list[str]:
    kind = getattr(algorithms, name)
    aggregator = _made(name)
    layer = torch.nn.Linear(30, 30)
    parameters = {each: value.detach() for each, value in layer.named_parameters()}
    down = aggregator.beside_down(parameters)
    term = aggregator.client_term(ClientStart(layer, down))
    kept = {} if term is None else term.finish(1).kept
    return [
        f"[{name}](../{Path(inspect.getfile(kind)).relative_to(Path(__file__).parents[1])})",
        _paper(kind),
        *(_size(each, parameters) for each in (kept, down, aggregator.beside_up(parameters))),
        *("yes" if _goes_with(name, settings) else "no" for settings in WITH.values()),
        "no" if isinstance(aggregator, AsynchronousAggregator) else "yes",
        f"`{TRIED[name]}`",
    ]


def _made(name: str) -> Aggregator:
    made: Aggregator = _ARGUMENTS.get(name, getattr(algorithms, name))()
    return made


def _paper(kind: type) -> str:
    """Authors and year, from the docstring's source."""
    found = re.search(r"Source: (\w+ et al\. \d{4})", inspect.getdoc(kind) or "")
    assert found is not None, f"{kind.__name__} names no paper"
    return found[1]


def _size(tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> str:
    """Of what is kept or travels, beside that of a model."""
    count, whole = (sum(value.numel() for value in each.values()) for each in (tensors, parameters))
    return "" if not count else "a model, float32" if count == whole else f"{4 * count} bytes"


def _goes_with(name: str, settings: dict[str, Any]) -> bool:
    try:
        FederatedTrainer(aggregator=_made(name), accelerator="cpu", enable_progress_bar=False, **settings)
    except ConfigurationError:
        return False
    return True


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(table(), end="")
