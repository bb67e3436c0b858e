"""A run's numbers from its own folder."""

import json
from pathlib import Path
from typing import Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.run.logged_rows import LoggedHistory, logged_values, make_history


def read_run_directory(run_dir: Path) -> LoggedHistory:
    """What `rounds.jsonl` holds, whether or not the run has ended.

    Raises:
        ConfigurationError: No round in it, or a file is damaged.
    """
    import yaml

    from fedhq_lightning.run.records import read_rounds

    rows = [logged_values(record) for record in read_rounds(run_dir / "rounds.jsonl")]
    config = _mapping(run_dir / "recipe.yaml", yaml.safe_load)
    summary = _mapping(run_dir / "summary.json", json.loads)
    return make_history(str(run_dir), rows, config, summary.get("metric_name"))


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    """What a file holds; empty where it is not there."""
    if not path.is_file():
        return {}
    import yaml

    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from error
    return found if isinstance(found, dict) else {}
