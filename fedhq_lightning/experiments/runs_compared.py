"""Several finished runs side by side: whether they can be, what they reached when, and where their recipes differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe.identity import differing
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.run.run import Run

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LONGEST_LABEL = 26
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        letter: What the page calls it.
        run: What its folder tells.
        name: What tells it from the others: its recipe, or its folder where recipes are alike.
    """

    letter: str
    run: Run
    name: str

    @property
    def label(self) -> str:
        """Letter and name, cut to what a legend holds."""
        short = self.name[: _LONGEST_LABEL - 1]
        return f"{self.letter}: {self.name if len(self.name) <= _LONGEST_LABEL else short + ELLIPSIS}"


@dataclass(frozen=True)
class Comparison:
    """Runs of one metric.

    Attributes:
        runs: Two or more.
        metric_name: What they all monitor.
        direction: Whether more or less of it is better; None where the runs do not tell.
    """

    runs: Sequence[ComparedRun]
    metric_name: str
    direction: Literal["max", "min"] | None

    @property
    def target(self) -> float | None:
        """The worst of the runs' finals, which each of them has reached; None where a run has none."""
        finals = [each.run.final for each in self.runs]
        known = [final for final in finals if final is not None]
        if self.direction is None or len(known) < len(finals):
            return None
        return min(known) if self.direction == "max" else max(known)

    def reached(self, each: ComparedRun) -> RoundRecord | None:
        """When a run was as good as the worst final."""
        return None if self.target is None else each.run.first_to_reach(self.target, self.direction == "max")

    def differing_keys(self) -> list[tuple[str, list[str]]]:
        """Keys of the recipes that are not the same in all runs, in the recipes' order, with each run's value."""
        return differing([each.run.settings for each in self.runs])

    def differing_versions(self) -> list[tuple[str, list[str]]]:
        """The same for the packages that the runs ran with."""
        versions = [each.run.summary.get("versions") or {} for each in self.runs]
        return differing(versions)


def compared(runs: Sequence[Run]) -> Comparison:
    """Put finished runs side by side.

    Args:
        runs: Two or more.

    Raises:
        ConfigurationError: They monitor different metrics, or the same metric in different directions.
    """
    names = [(run.name, str(run.summary.get("metric_name"))) for run in runs]
    if len({run.metric_name for run in runs}) > 1:
        raise ConfigurationError(
            f"runs of different metrics cannot be put side by side: {_listed(names)}; give runs of one metric, or "
            "run one of them again with --trainer.monitor=NAME"
        )
    directions = [run.direction for run in runs]
    known = {direction for direction in directions if direction is not None}
    if len(known) > 1:
        raise ConfigurationError(
            f"runs that want {runs[0].metric_name} in different directions cannot be put side by side: "
            f"{_listed([(run.name, str(each)) for run, each in zip(runs, directions, strict=True)])}; give runs of one "
            "trainer.monitor_mode"
        )
    recipes = [run.recipe_name for run in runs]
    tell = len(set(recipes)) == len(runs) and all(recipes)
    lettered = [
        ComparedRun(_letter(number), run, recipes[number] if tell else run.name) for number, run in enumerate(runs)
    ]
    return Comparison(lettered, runs[0].metric_name, next(iter(known), None))


def _listed(values: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} has {value}" for name, value in values)


def _letter(number: int) -> str:
    more, last = divmod(number, len(_LETTERS))
    return (_letter(more - 1) if more else "") + _LETTERS[last]
