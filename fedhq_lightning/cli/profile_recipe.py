"""`fedhq profile`: measure a recipe's lanes on this host, and freeze a better choice of kernels in the recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedhq_lightning.cli.profile_tables import print_profile
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.profiling.host_profile import LayerKernels, as_patterns
from fedhq_lightning.profiling.profile_host import profile_host
from fedhq_lightning.recipe import files as recipe_files
from fedhq_lightning.recipe.edit import block, with_layer_kernels
from fedhq_lightning.report.final_table import on_terminal
from fedhq_lightning.support.atomic_files import told_to_user, write_atomically
from fedhq_lightning.support.quiet import say_line
from fedhq_lightning.support.signals import check_stopped
from fedhq_lightning.support.terminal import Terminal


def profile_recipe(recipe: str, overrides: Sequence[str] = (), write: bool = False) -> None:
    """Measure, print, and with `write` freeze what is faster than the static rule's choice.

    Args:
        recipe: A shipped recipe's name, or a file.
        overrides: As `fedhq run` takes them. They are measured, but not written.
        write: Put `trainer.lanes.layer_kernels` into the file; of a shipped recipe, into a copy in the current folder.

    Raises:
        ConfigurationError: A recipe that `fedhq run` would refuse, one without a scheme, or a file that cannot be
            written; of these, what can be known is raised before anything is measured.
    """
    name, text = recipe_files.find(recipe)
    resolved = resolve(name, text, overrides)
    target = _target(recipe, name) if write else None
    with resolved.keys_named(), _progress() as show:

        def on_progress(text: str) -> None:
            check_stopped()
            show(text)

        trainer, module, datamodule = resolved.instantiate()
        profile = profile_host(trainer.settings, trainer.fabric, module, datamodule, on_progress)
        check_stopped()
    print_profile(profile, name)
    if target is not None:
        _write(target, name, text, profile.layer_kernels, overrides)


def _target(recipe: str, name: str) -> Path:
    """The file to write; refused where that can already be known to fail."""
    given = recipe_files.path_of(recipe)
    if given is not None:
        # A link stays one: its file is written.
        target = Path(os.path.realpath(given))
    else:
        target = Path(f"{name}.yaml")
        _refuse_existing(target)
    if not os.access(target.absolute().parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise ConfigurationError(f"{target} cannot be written: Permission denied; --write needs a folder of yours")
    return target


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise ConfigurationError(
            f"{target} is there already, and --write leaves it alone; profile that file with fedhq profile ./{target} "
            "--write, or remove it"
        )


def _write(target: Path, name: str, text: str, kernels: LayerKernels, overrides: Sequence[str]) -> None:
    is_own = target.exists()
    if is_own:
        with told_to_user(target), target.open(encoding="utf-8", newline="") as file:
            text = file.read()
    patterns = {mode: as_patterns(chosen) for mode, chosen in kernels.items()}
    try:
        edited = with_layer_kernels(text, patterns)
    except ConfigurationError as error:
        say_line(f"paste this into {target.name}:\n\n{block(patterns)}", sys.stdout)
        raise ConfigurationError(f"{target.name} is left as it is, {error}; paste the lines above into it") from error
    if is_own and edited == text:
        say_line(f"{target.name} stays as it is", sys.stdout)
        return
    _check_matching(target.name, name, edited, overrides)
    if not is_own:
        _refuse_existing(target)
    write_atomically(target, edited)
    without = f", without {' '.join(overrides)}" if overrides else ""
    say_line(f"{target.name} written{without}; run it with: fedhq run {_shown(target)}", sys.stdout)


def _check_matching(file: str, name: str, text: str, overrides: Sequence[str]) -> None:
    """Overrides may have changed the model: names of layers measured with them need not be in the file's."""
    trainer, module, _ = resolve(name, text).instantiate() if overrides else (None, None, None)
    if trainer is None or module is None:
        return
    try:
        settings = trainer.settings
        names = list(settings.scheme.for_layers(module)) if settings.scheme is not None else []
        for mode in ("ptq", "qat"):
            settings.lanes.kernels_of(mode, names)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{file} is not written: what was measured with {' '.join(overrides)} does not fit it without ({error})"
        ) from error


def _shown(target: Path) -> str:
    try:
        return f"./{target.absolute().relative_to(Path.cwd())}"
    except ValueError:
        return str(target)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """One line on a terminal that says what is being measured; silent elsewhere."""
    console = Terminal(stderr=True)
    if not on_terminal(console):
        yield lambda text: None
        return
    with console.status("setting up") as status:
        yield lambda text: status.update(f"measuring {text}")
