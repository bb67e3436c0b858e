"""The documentation is true: its code runs, its recipes resolve, its commands, keys and links exist."""

import inspect
import json
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import yaml

from fedhq_lightning.recipe import files as recipe_files

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"# ([\w-]+\.(?:py|yaml|csv))\n")
_RECIPE_NAME = re.compile(r"# ([\w-]+): ")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_INLINE_COMMAND = re.compile(r"`(fedhq [^`]+)`")
_MAKE_TARGET = re.compile(r"^([\w-]+):", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """The file that the block is, as its first line says."""
        if match := _FILE_NAME.match(self.text):
            return match[1]
        match = _RECIPE_NAME.match(self.text) if self.language == "yaml" else None
        return f"{match[1]}.yaml" if match else None


def blocks(page: Path, *languages: str) -> list[Block]:
    found = [Block(page, match[1], match[2]) for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [block for block in found if block.language in languages]


def commands(page: Path) -> list[str]:
    """Command lines of shell blocks and of inline code, without prompts."""
    lines = [line.removeprefix("$ ") for block in blocks(page, "bash", "console") for line in block.text.splitlines()]
    return [*lines, *_INLINE_COMMAND.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))]


def by_name(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.name)


@pytest.fixture
def page_files(page: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files that a page shows, in the working directory, its modules importable and forgotten afterwards."""
    before = set(sys.modules)
    for block in blocks(page, "python", "yaml", "csv"):
        if block.file_name:
            Path(block.file_name).write_text(block.text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    yield
    for path in Path.cwd().glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


@by_name([page for page in PAGES if blocks(page, "python")])
@pytest.mark.usefixtures("page_files")
def test_python_blocks_run_in_order(page: Path, request: pytest.FixtureRequest) -> None:
    # No block reads the report, and `page_run` has it; nor the exported program where the page does not name it.
    request.getfixturevalue("no_report" if "model.pt2" in page.read_text(encoding="utf-8") else "no_program")
    namespace: dict[str, object] = {"__name__": "documentation"}
    with warnings.catch_warnings():
        # Lightning's Trainer recommends workers and loggers, which a page that shows something else does without.
        warnings.filterwarnings("ignore", module=r"lightning\.pytorch")
        for block in blocks(page, "python"):
            if not block.file_name:
                exec(compile(block.text, f"{page.name}: {block.text[:40]!r}", "exec"), namespace)


@by_name([page for page in PAGES if blocks(page, "yaml")])
@pytest.mark.usefixtures("page_files")
def test_yaml_blocks_resolve(page: Path) -> None:
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(block.text)
        if {"profiles", "figures", "clients"} & content.keys():
            _check_device_file(block)
        elif "search" in content:
            _check_recipe({"tune": content})
        else:
            _check_recipe(content)


@by_name(LINKING_PAGES)
@pytest.mark.usefixtures("page_files")
@pytest.mark.filterwarnings("ignore:(not )?kept from the recipe")
def test_commands_exist(page: Path) -> None:
    targets = _MAKE_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8"))
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        elif words[:1] == ["fedhq"] or words[:1] == [".venv/bin/fedhq"]:
            _check_command(line, words[1:])


@by_name(LINKING_PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, heading = link.partition("#")
        if "://" in target:
            continue
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name} links to {link}"
        if heading:
            assert heading in _headings(path), f"{page.name} links to {link}"


def test_own_module_takes_fewer_than_15_lines() -> None:
    page = ROOT / "docs" / "own-module.md"
    python = next(block for block in blocks(page, "python") if "from net import Net" in block.text)
    recipe = next(block for block in blocks(page, "yaml") if "net.Net" in block.text)
    swap = yaml.safe_load(recipe.text)["model"]
    assert swap["class_path"] == "net.Net"
    assert len([line for line in python.text.splitlines() if line.strip()]) < 15


def test_files_that_the_architecture_names_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {name for name in _quoted(text) if re.fullmatch(r"[\w/]+/[\w*]+\.(py|yaml)", name) and "NAME" not in name}
    assert len(named) > 50
    assert sorted(name for name in named if not list((ROOT / "fedhq_lightning").glob(name))) == []


def test_every_trainer_argument_is_explained() -> None:
    from fedhq_lightning import FederatedTrainer

    section = _section(ROOT / "docs" / "recipes.md", "trainer")
    assert sorted(_first_column(section)) == sorted(set(inspect.signature(FederatedTrainer).parameters))


def test_every_key_of_the_summary_is_explained(page_run: Path) -> None:
    section = _section(ROOT / "docs" / "run-directory.md", "summary.json")
    assert sorted(_first_column(section)) == sorted(json.loads((page_run / "summary.json").read_text()))


def test_every_field_of_the_records_is_explained() -> None:
    from fedhq_lightning.run.records import ClientRecord, RoundRecord

    names = set(_quoted(_section(ROOT / "docs" / "run-directory.md", "rounds.jsonl, metrics.csv, clients.parquet")))
    assert {field.name for record in (RoundRecord, ClientRecord) for field in fields(record)} <= names


def test_every_file_of_a_run_is_explained(page_run: Path) -> None:
    table = (ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8").partition("\n## ")[0]
    listed = {name.removesuffix("/") for name in _first_column(table)}
    # Only with W&B, with algorithms whose clients keep something, with fine-tuning, and where models are asked for.
    elsewhere = {"wandb", "client_state", "in_flight", "fine_tuned", "clients/ID", "exported"}
    assert {path.name for path in page_run.iterdir()} == listed - elsewhere


@pytest.fixture(scope="module")
def page_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that docs/run-directory.md reads."""
    namespace: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page_run"))
        patch.setenv("WANDB_MODE", "disabled")
        exec(blocks(ROOT / "docs" / "run-directory.md", "python")[0].text, namespace)
        run = namespace["run"]
        assert isinstance(run, Path)
        return run.absolute()


def _check_recipe(content: dict[str, object]) -> None:
    """A whole recipe as it is; a part of one in the place of digits-smoke's."""
    from fedhq_lightning.devices import Fleet
    from fedhq_lightning.launch.resolve import resolve

    base = yaml.safe_load(recipe_files.find("digits-smoke")[1])
    tune = content.pop("tune", None)
    assert set(content) <= set(base), f"no recipe and no part of one: {list(content)}"
    if set(content) != set(base):
        trainer = base["trainer"] | content.get("trainer", {})  # type: ignore[operator]  # YAML mappings
        content = base | content | {"trainer": trainer}
    resolved = resolve("documented", yaml.safe_dump(content))
    if tune is not None:
        _check_search(yaml.safe_load(resolved.recipe.text), tune)
    trainer, model, _ = resolved.instantiate()
    Fleet.resolve(trainer.settings.fleet, seed=0)
    assert trainer.settings.scheme is not None
    trainer.settings.scheme.for_layers(model)


def _check_search(recipe: dict[str, object], tune: dict[str, object]) -> None:
    from fedhq_lightning.experiments.objectives import parse_objectives
    from fedhq_lightning.experiments.search_space import make_space
    from fedhq_lightning.experiments.study_section import parse_section
    from fedhq_lightning.launch.resolve import resolve

    section = parse_section(tune)
    objectives = parse_objectives(section.objectives, "max")
    if section.pruning is not None:
        section.pruning.check(objectives)
    for _, _, content in make_space(recipe, section.search).variations():
        resolve("documented", yaml.safe_dump(content)).instantiate()


def _check_device_file(block: Block) -> None:
    from fedhq_lightning.devices import Fleet, load_profile

    assert block.file_name
    if "figures" in yaml.safe_load(block.text):
        load_profile(block.file_name)
    else:
        Fleet.resolve(block.file_name, seed=0)


def _check_command(line: str, words: list[str]) -> None:
    """Words in capitals stand for a name of the reader's; a command without arguments is only mentioned."""
    from fedhq_lightning.cli.main import main, make_parser
    from fedhq_lightning.launch.resolve import resolve

    command, *arguments = words
    assert command in make_parser().commands, line
    if command in ("eval", "export", "report", "runs", "completion"):
        if arguments:
            make_parser().parse_known_args(words)  # whose files the reader has to have
        return
    if command in ("run", "flower") and arguments:
        known, overrides = make_parser().parse_known_args(words)
        arguments = [known.recipe, *overrides]
    if command == "profile":
        arguments = [argument for argument in arguments if argument != "--write"]
    if command == "tune":
        arguments = _tune_overrides(words)
    if command == "compare":
        arguments = _compare_overrides(words)
    if command == "resume":
        assert arguments[:1] in ([], ["RUN_DIR"]), line
        longer = [each.replace("=N", "=9") for each in arguments[1:]]
        resolve(*recipe_files.find("digits-smoke"), longer)  # any run's recipe has these keys
    elif not arguments:
        return
    elif arguments[0].isupper():
        assert len(arguments) == 1, line
    elif command == "cp":
        if not any(Path(argument).stem.isupper() for argument in arguments):
            assert main([command, *arguments]) == 0, line
        assert arguments[0] in recipe_files.shipped(), line
    else:
        resolve(*recipe_files.find(arguments[0]), arguments[1:])


def _compare_overrides(words: list[str]) -> list[str]:
    """The recipe and the overrides among the words of a `fedhq compare`; allocators and what varies have to exist."""
    from fedhq_lightning.cli.main import make_parser
    from fedhq_lightning.experiments.contestants import BEST_FIXED, check_names, contestant
    from fedhq_lightning.experiments.variations import variations

    if len(words) == 1:
        return []
    known, overrides = make_parser().parse_known_args(words)
    if known.allocators is not None:
        check_names(known.allocators)
    for name in set(known.allocators or ()) - {BEST_FIXED}:
        contestant(name)
    if known.vary and not known.recipe.isupper():
        variations(*recipe_files.find(known.recipe), overrides, known.vary)
    return [known.recipe, *overrides]


def _tune_overrides(words: list[str]) -> list[str]:
    """The recipe and the overrides among the words of a `fedhq tune`; its search has to be there."""
    from fedhq_lightning.cli.main import make_parser
    from fedhq_lightning.experiments.study_section import read_section

    if len(words) == 1:
        return []
    known, overrides = make_parser().parse_known_args(words)
    if not known.recipe.isupper():
        read_section(recipe_files.find(known.recipe)[1], known.search)
    return [known.recipe, *overrides]


def _section(page: Path, heading: str) -> str:
    text = page.read_text(encoding="utf-8")
    assert f"\n## {heading}\n" in text
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def _first_column(text: str) -> list[str]:
    """Code words in the first column of the tables."""
    return [name for cell in re.findall(r"^\| (`.+?) \|", text, re.MULTILINE) for name in _quoted(cell)]


def _quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", _FENCE.sub("", text))


def _headings(page: Path) -> list[str]:
    """Anchors as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
