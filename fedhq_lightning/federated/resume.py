"""A run that goes on: which one is meant, whether it is the same, and what a longer one changes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.parameter import is_lazy

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.settings import RunSettings
from fedhq_lightning.quantize.lane_options import default_of_option
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.recipe.edit import with_value
from fedhq_lightning.recipe.identity import SETTINGS_THAT_CHANGE_NO_BIT, changes, check_same, in_words
from fedhq_lightning.run.directory import MOST_INPUT_BYTES, RunDirectory
from fedhq_lightning.run.lightning_checkpoint import for_lightning
from fedhq_lightning.run.records import RoundRecord
from fedhq_lightning.run.round_checkpoint import check_model, read_round, unfit
from fedhq_lightning.run.state import RunState
from fedhq_lightning.support.paths import expand_path
from fedhq_lightning.support.text import first_line
from fedhq_lightning.support.typed_json import read_json
from fedhq_lightning.support.yaml_text import parse_yaml, read_yaml
from fedhq_lightning.types import StateDict

_PARTS_BESIDE_RECIPE = ("device", "compiled_kernels", "native_kernels", "virtual_fleet")
_FREE = SETTINGS_THAT_CHANGE_NO_BIT | {"trainer.max_rounds"}


@dataclass(frozen=True)
class Resumed:
    """A run as its checkpoint has it.

    Attributes:
        directory: Of the run.
        file: The checkpoint.
        saved: Its content.
        records: Of the rounds done, without clients.
    """

    directory: RunDirectory
    file: Path
    saved: Mapping[str, Any]
    records: Sequence[RoundRecord]

    @property
    def max_rounds(self) -> int:
        """What the run was asked for when the checkpoint was written."""
        return int(self.saved["described"]["trainer"]["max_rounds"])

    @property
    def state(self) -> RunState:
        """Where the run stood."""
        return RunState.from_checkpoint(self.saved["state"], self.records)

    def check_job(self, initial: StateDict, inputs: Mapping[str, Any] | None) -> None:
        """Refuse a checkpoint whose models are not those of this module, or of other data.

        Args:
            initial: The module's state at the start of a run.
            inputs: What the data module tells of the inputs.

        Raises:
            ConfigurationError: Names, shapes or types differ, or what was told of the inputs when the run began.
        """
        told = self.directory.inputs
        # A run of before has none, where its data tell something now.
        before = read_json(told, dict[str, Any], MOST_INPUT_BYTES) if told.exists() else inputs or {}
        if inputs is not None and (found := changes(before, inputs)):
            raise ConfigurationError(
                f"{told}: the data are not those that the run began with: {in_words(found)}; put them back, or start "
                "a new run"
            )
        check_model(self.file, self.saved, initial)

    def load_into(self, part: Any, state: Any) -> None:
        """Have a part of the run take up its state.

        Args:
            part: With a `load_state_dict`.
            state: What the checkpoint holds of it; None for nothing.

        Raises:
            ConfigurationError: It cannot; whatever it raised is the cause.
        """
        if state is None:
            return
        try:
            part.load_state_dict(state)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"{self.file}: {type(part).__name__} cannot take up what it holds of it ({type(error).__name__}: "
                f"{first_line(error)}); resume with the classes that the run began with, or start a new run"
            ) from error

    def take_up(self, module: L.LightningModule, recipe_text: str, max_rounds: int) -> AbstractContextManager[None]:
        """Make the files say where the run goes on from; on the first process, within `RunDirectory.locked`.

        Args:
            module: The template, for what Lightning reads of `best.ckpt`.
            recipe_text: The recipe as it is now.
            max_rounds: Rounds in all now.

        Returns:
            To be entered for as long as the run goes on.
        """
        directory, state = self.directory, self.state
        directory.rewind(state.round)
        if state.best_state is None:
            directory.best.unlink(missing_ok=True)
        else:
            directory.save_best(best_checkpoint(module, state))
        if max_rounds == self.max_rounds:
            return nullcontext()
        return directory.rewrite_recipe(_with_max_rounds(directory.recipe, recipe_text, max_rounds))


def find_run(ckpt_path: str | Path, runs: Path) -> Path | None:
    """The run directory or checkpoint that is meant.

    Args:
        ckpt_path: A path, or "last" for the newest run.
        runs: Folder of the recipe's runs.

    Returns:
        Its path; None where "last" finds none, as in Lightning.

    Raises:
        ConfigurationError: Another of Lightning's words.
    """
    if ckpt_path in ("best", "hpc", "registry"):
        raise ConfigurationError(
            f"ckpt_path {ckpt_path!r}: fit goes on where a run stood; give its directory, trainer.run_dir, or 'last' "
            "for the newest one of this module or recipe"
        )
    if ckpt_path != "last":
        return expand_path(ckpt_path, "ckpt_path")
    found = [path for path in runs.glob("*") if RunDirectory(path).can_go_on()]
    if found:
        return max(found, key=lambda path: path.name)  # they begin with the time
    rank_zero_warn(f"ckpt_path 'last': no run to go on with is in {runs}, so a new one begins")
    return None


def read_same(
    directory: RunDirectory,
    file: Path,
    described: Mapping[str, Any],
    settings: RunSettings,
    module: L.LightningModule,
) -> Resumed:
    """A checkpoint of a run that was started with the same settings but for what changes no bit, and `max_rounds`.

    Args:
        directory: Of the run.
        file: The checkpoint; where it is the newest and damaged, or its round would be another with this `max_rounds`,
            an older one is taken.
        described: This run.
        settings: This run's.
        module: The user's; of what its state holds that is no number, none is asked for.

    Raises:
        ConfigurationError: Another run, no checkpoint to go on from, or more rounds done than `max_rounds`.
    """
    candidates = [file]
    if file in (saved := directory.saved_checkpoints())[-1:]:
        candidates = saved[::-1]
    odd = {name for name, value in module.state_dict().items() if _is_odd(value)}
    intact = _intact(candidates, odd)
    (chosen_file, chosen), now = next(intact), settings.max_rounds
    try:
        _check_same(chosen, described)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise unfit(chosen_file, f"its settings are none ({type(error).__name__})") from error
    if chosen["state"]["round"] > now:
        raise ConfigurationError(
            f"max_rounds {now}: {directory.path} has done {chosen['state']['round']} rounds; give that many or more, "
            "or start a new run"
        )
    while not _is_as_with(chosen, now) and (older := next(intact, None)):
        chosen_file, chosen = older
    resumed = Resumed(directory, chosen_file, chosen, directory.rounds_until(chosen["state"]["round"]))
    _tell_what_changes(resumed, settings)
    return resumed


def check_same_from_start(directory: RunDirectory, recipe_text: str) -> None:
    """See that a run which was stopped before its first checkpoint can begin anew in its directory.

    Args:
        directory: Of the run; its `recipe.yaml` tells what it was started with.
        recipe_text: What this run would write there.

    Raises:
        ConfigurationError: Another run, or one that did rounds and lost its checkpoints.
    """
    if sum(1 for _ in directory.stream_rounds()) > 1:
        raise ConfigurationError(
            f"{directory.path}: nothing to resume from: its rounds are in rounds.jsonl, but its checkpoints are gone; "
            "put them back, or start a new run"
        )
    before, now = read_yaml(directory.recipe), parse_yaml(recipe_text)
    if not isinstance(before, dict):
        raise ConfigurationError(f"{directory.recipe}: no recipe of a run; start a new run")
    check_same(before, now, _FREE, default_of_option)


def begin_anew(directory: RunDirectory, recipe_text: str, max_rounds: int) -> AbstractContextManager[None]:
    """Leave no round in a directory that `check_same_from_start` has seen; on the first process, within `locked`.

    Args:
        directory: Of the run.
        recipe_text: The recipe as it is now.
        max_rounds: Rounds in all now.

    Returns:
        To be entered for as long as the run goes on.
    """
    directory.rewind(-1)
    text = _with_max_rounds(directory.recipe, recipe_text, max_rounds)
    return nullcontext() if text == recipe_files.read(directory.recipe) else directory.rewrite_recipe(text)


def best_checkpoint(module: L.LightningModule, state: RunState) -> dict[str, Any]:
    """What `best.ckpt` holds."""
    return {"round": state.best_round, "state": state.deployed, **for_lightning(module, state.deployed)}


def _intact(candidates: Sequence[Path], odd: Collection[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Checkpoints that a run can go on from, in turn, and one line for those that were passed over.

    Raises:
        ConfigurationError: There is none among the candidates; each is named, and why.
    """
    refusals: list[str] = []
    has_one = False
    for file in candidates:
        try:
            saved = read_round(file, odd)
        except ConfigurationError as error:
            refusals.append(str(error))
            continue
        if refusals and not has_one:
            rank_zero_warn(f"{'; '.join(refusals)}: passed over, the run goes on from {file.name}")
        has_one = True
        yield file, saved
    if not has_one:
        more = "" if len(refusals) == 1 else "; there is no other: put one back, or start a new run"
        raise ConfigurationError("; ".join(refusals) + more)


def _is_odd(value: Any) -> bool:
    return isinstance(value, Tensor) and not is_lazy(value) and value.is_floating_point() and not value.isfinite().all()


def _check_same(saved: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    before, now = saved["described"], described
    if "recipe" in before and "recipe" in now:
        # It tells more than objects tell about themselves.
        parts = [name for name in _PARTS_BESIDE_RECIPE if name in before]
        before, now = ({**each["recipe"], **{name: each.get(name) for name in parts}} for each in (before, now))
    check_same(before, now, _FREE, default_of_option)


def _is_as_with(saved: Mapping[str, Any], max_rounds: int) -> bool:
    """Whether the checkpoint's last round is that of a run of `max_rounds`: the very last is always evaluated."""
    trainer, done = saved["described"]["trainer"], saved["state"]["round"]
    is_due = done % trainer["eval_every_n_rounds"] == 0
    return bool(is_due or (done == trainer["max_rounds"]) == (done == max_rounds))


def _tell_what_changes(resumed: Resumed, settings: RunSettings) -> None:
    """One line, where a run that had `max_rounds` from the start would have been another."""
    before, now, done = resumed.max_rounds, settings.max_rounds, resumed.saved["state"]["round"]
    if before == now:
        return
    if resumed.saved["state"]["stopped"]:
        changes = [f"a callback ended the run after round {done}, as it would have with {now}: it stays ended"]
    else:
        changes = []
        if settings.round_lr in ("cosine", "linear"):
            changes.append(f"round_lr {settings.round_lr!r} is that of {now} rounds")
        if settings.allocator is not None and settings.allocator.looks_at_max_rounds:
            changes.append(f"{type(settings.allocator).__name__} plans as in a run of {now}")
        if changes:
            changes[0] = f"from round {done + 1} on {changes[0]}"
            changes.append(f"rounds 1 to {done} stay those of {before}")
    if not _is_as_with(resumed.saved, now):
        changes.append(f"round {done} is recorded as that of {before} rounds, for no older checkpoint is there")
    if changes:
        rank_zero_warn(f"max_rounds was {before}, is now {now}: {', '.join(changes)}")


def _with_max_rounds(file: Path, recipe_text: str, max_rounds: int) -> str:
    try:
        return with_value(file.read_text(encoding="utf-8"), ("trainer", "max_rounds"), max_rounds)
    except ConfigurationError:
        return recipe_text
