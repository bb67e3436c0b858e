"""Files of a finished run as Weights & Biases' artifacts: deployed model, study, recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MODEL_METADATA = (
    *("scheme", "layer_schemes", "metric_name", "metric_fp", "metric_quantized", "best_round", "rounds"),
    *("export", "recipe", "seed", "versions"),
)
_NOT_IN_A_NAME = re.compile(r"[^\w.-]", re.ASCII)
"""What W&B refuses in the name of an artifact, and a run's name may have."""
_STUDY_FILES = ("allocation.json", "study.log", "allocation.svg")


def log_artifacts(run: Any, summary: Mapping[str, Any], run_dir: Path) -> None:
    """Log `model/` (aliases latest, best, round-N) and the study (latest, round-N) where there are, and `recipe.yaml`.

    They stay where they are ("immutable"), where wandb would copy each of them; named by their whole path, since an
    offline run may be synced from anywhere.

    Args:
        run: The W&B run.
        summary: Of the run; tells the rounds and what the model's metadata say.
        run_dir: The run directory.
    """
    import wandb

    run_dir, run_id = run_dir.absolute(), _NOT_IN_A_NAME.sub("-", run.id)
    files = sorted(path for path in (run_dir / "model").rglob("*") if path.is_file())
    if files:
        metadata = {name: summary[name] for name in _MODEL_METADATA if name in summary}
        metadata["bytes"] = {str(file.relative_to(run_dir / "model")): file.stat().st_size for file in files}
        model = wandb.Artifact(f"model-{run_id}", type="model", metadata=metadata)
        for file in files:
            model.add_file(str(file), name=str(file.relative_to(run_dir / "model")), policy="immutable")
        run.log_artifact(model, aliases=["latest", "best", f"round-{summary.get('best_round', summary['rounds'])}"])

    recipe = wandb.Artifact(f"recipe-{run_id}", type="recipe")
    recipe.add_file(str(run_dir / "recipe.yaml"), policy="immutable")
    run.log_artifact(recipe, aliases=["latest"])

    found = [run_dir / name for name in _STUDY_FILES if (run_dir / name).is_file()]
    if found:
        study = wandb.Artifact(f"study-{run_id}", type="study")
        for file in found:
            study.add_file(str(file), policy="immutable")
        run.log_artifact(study, aliases=["latest", f"round-{summary['rounds']}"])
