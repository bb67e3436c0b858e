"""What W&B's offline files hold, read with our own parser."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhq_lightning.run.offline_wandb import _records, _update


class Logged:
    """Settings, values, artifacts and metric definitions of a run, from all its offline files together."""

    def __init__(self, run_dir: Path) -> None:
        files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
        self.folder = files[-1].parent
        self.rows: list[dict[str, Any]] = []
        self.values: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.artifacts: dict[str, Any] = {}
        self.axes: dict[str, Any] = {}
        self.run: Any = None
        for file, record in ((each, record) for each in files for record in _records(each)):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self.rows.append(_values(record.history.item))
                self.values |= self.rows[-1]
            elif kind == "summary":
                self.summary |= _values(record.summary.update)
            elif kind == "artifact":
                self.artifacts[record.artifact.name] = record.artifact
            elif kind == "metric":
                self.axes[record.metric.name or record.metric.glob_name] = record.metric
            elif kind == "run":
                self.run = record.run
                _update(file, self.config, record.run.config)
            elif kind == "config":
                _update(file, self.config, record.config)

    @property
    def rounds(self) -> list[int]:
        """Rounds in the order in which they were logged; without what is logged at the end."""
        return [row["round"] for row in self.rows if "seconds/virtual" in row]

    def file(self, name: str) -> Path:
        """A picture or table that was logged."""
        return self.folder / "files" / str(self.values[f"{name}.path"])

    def table(self, name: str) -> list[dict[str, Any]]:
        content = json.loads(self.file(name).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def _values(items: Sequence[Any]) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
