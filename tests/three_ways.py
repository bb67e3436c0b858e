"""One recipe, run whole, on two processes, and interrupted and resumed."""

from pathlib import Path
from typing import Any

import pytest

from fedhq_lightning.cli.main import main
from fedhq_lightning.federated.rounds import RoundLoop

from .programs import Program
from .small_recipe import write_recipe

NORMED: dict[str, Any] = {
    "model.class_path": "tests.normed_module.Normed",
    "model.init_args": {"image_size": 8},
    "trainer.clients_per_round": 3,
    "trainer.max_rounds": 3,
    "trainer.enable_progress_bar": False,
}
"""A classifier with batch normalization for three rounds, on top of the small recipe."""


def run_three_ways(folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Run the small recipe, changed.

    Args:
        folder: Gets the recipe and the runs.
        changes: Of the recipe, by dotted key.
        monkeypatch: For the interruption, before round 2 is planned.

    Returns:
        Directories of the whole run, of that on two processes, and of the resumed one.
    """
    recipe = str(write_recipe(folder / "recipe.yaml", changes))
    two = Program(
        *("-m", "fedhq_lightning.cli.main", "run", recipe, "--trainer.devices=2"),
        f"--trainer.default_root_dir={folder / 'two'}",
    )
    assert main(["run", recipe, f"--trainer.default_root_dir={folder / 'one'}"]) == 0
    plan = RoundLoop._plan

    def interrupt(self: RoundLoop, round_number: int) -> Any:
        if round_number == 2:
            raise KeyboardInterrupt
        return plan(self, round_number)

    with monkeypatch.context() as patch:
        patch.setattr(RoundLoop, "_plan", interrupt)
        assert main(["run", recipe, f"--trainer.default_root_dir={folder / 'broken'}"]) == 130
    (broken,) = folder.glob("broken/*/*")
    assert main(["resume", str(broken)]) == 0
    printed = two.communicate(timeout=240)
    assert two.returncode == 0, printed
    (whole,), (shared,) = (folder.glob(f"{name}/*/*") for name in ("one", "two"))
    return [whole, shared, broken]
