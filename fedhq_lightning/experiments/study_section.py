"""The `tune` section of a recipe, or the file that takes its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fedhq_lightning.errors import ConfigurationError, nearest
from fedhq_lightning.experiments.objectives import DEFAULT
from fedhq_lightning.experiments.pruning import PruningRule
from fedhq_lightning.support.paths import expand
from fedhq_lightning.support.yaml_text import parse_yaml, read_yaml

KEYS = ("search", "objectives", "trials", "sampler", "seed", "pruning")
_TRIALS = 20
_SAMPLERS = {"tpe": "TPESampler", "nsgaii": "NSGAIISampler", "random": "RandomSampler"}


@dataclass(frozen=True)
class Section:
    """What a study is to do.

    Attributes:
        search: Key -> choices or range, not yet checked against a recipe.
        objectives: Names, not yet checked.
        trials: Trials in all.
        sampler: `name` and the sampler's arguments.
        seed: Where the samplers' random numbers come from; None for the recipe's.
        pruning: When a trial ends early; None for never.
    """

    search: Mapping[str, Any]
    objectives: Any
    trials: int
    sampler: Mapping[str, Any]
    seed: int | None
    pruning: PruningRule | None

    def make_sampler(self, seed: int) -> Any:
        """Optuna's sampler.

        Raises:
            ConfigurationError: It refuses its arguments.
        """
        import optuna

        arguments = {name: value for name, value in self.sampler.items() if name != "name"}
        try:
            return getattr(optuna.samplers, _SAMPLERS[self.sampler["name"]])(seed=seed % 2**32, **arguments)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"sampler {self.sampler['name']}: {error}") from error


def read_section(text: str, search_file: str | None) -> Any:
    """The section as written: of a recipe's text, or of a file, at its root or under `tune`.

    Raises:
        ConfigurationError: There is none.
    """
    if search_file is None:
        section = parse_yaml(text).get("tune")
        if section is None:
            raise ConfigurationError(
                "it has no tune section; add one (see docs/tuning.md), or give a file of its own by --search FILE"
            )
        return section
    search_file = expand(search_file, "--search")
    try:
        content = read_yaml(Path(search_file))
    except ConfigurationError as error:
        raise ConfigurationError(f"--search {error}") from error
    return content.get("tune", content) if isinstance(content, Mapping) else content


def parse_section(given: Any, trials: int | None = None) -> Section:
    """Check all that can be checked without the recipe.

    Args:
        given: The section as written.
        trials: In place of the section's.

    Raises:
        ConfigurationError: An unknown key or value.
    """
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{given!r}: give a mapping with {', '.join(KEYS)}")
    for key in given:
        if key not in KEYS:
            hint = nearest(str(key), KEYS) or "; recipe keys belong under search"
            raise ConfigurationError(f"unknown key {key!r}; allowed are {', '.join(KEYS)}{hint}")
    count = given.get("trials", _TRIALS) if trials is None else trials
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigurationError(f"trials {count!r} must be a whole number, 1 or more")
    seed = given.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ConfigurationError(f"seed {seed!r} must be a whole number")
    section = Section(
        search=given.get("search") or {},
        objectives=given.get("objectives") or list(DEFAULT),
        trials=count,
        sampler=_sampler(given.get("sampler")),
        seed=seed,
        pruning=_pruning(given.get("pruning")),
    )
    section.make_sampler(0)
    return section


def pruning_as_json(rule: PruningRule | None) -> dict[str, Any] | None:
    """Plain values."""
    return None if rule is None else asdict(rule)


def _sampler(given: Any) -> dict[str, Any]:
    sampler = dict(given) if isinstance(given, Mapping) else {"name": given or "tpe"}
    name = sampler.get("name")
    if name not in _SAMPLERS:
        raise ConfigurationError(
            f"sampler {name!r}; allowed are {', '.join(_SAMPLERS)}, or {{name: tpe, n_startup_trials: 5}} with its "
            f"arguments{nearest(str(name), _SAMPLERS)}"
        )
    if "seed" in sampler:
        raise ConfigurationError("sampler: its seed comes from the study's, tune.seed")
    return sampler


def _pruning(given: Any) -> PruningRule | None:
    if given is None or given is False:
        return None
    names = [field.name for field in fields(PruningRule)]
    arguments = {} if given is True else given
    if not isinstance(arguments, Mapping):
        raise ConfigurationError(f"pruning {given!r}; allowed are true, false, or a mapping with {', '.join(names)}")
    for name in arguments:
        if name not in names:
            raise ConfigurationError(
                f"pruning: unknown key {name!r}; allowed are {', '.join(names)}{nearest(str(name), names)}"
            )
    return PruningRule(**arguments)
