"""Whole comparisons of runs of a second: pairing, keeping, going on, refusing."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments import cell_runs, contestants
from fedhq_lightning.experiments.cells import cell_path, read_cell
from fedhq_lightning.experiments.comparison import Compared, Comparison
from fedhq_lightning.launch.resolve import resolve
from fedhq_lightning.run.offline_wandb import _records
from fedhq_lightning.run.records import read_rounds

from ..small_recipe import changed
from ..trainer.conftest import make_quick

pytestmark = pytest.mark.filterwarnings("ignore:.*no training examples")
ALL = ("all-ptq", "all-qat-fake", "half=half.yaml", "random-total", "random-tier")
NAMES = tuple(name.partition("=")[0] for name in ALL)


def comparison(allocators=ALL, seeds=(0,), changes=None, **settings) -> Comparison:
    recipe = changed({"trainer.max_rounds": 3, "trainer.fleet": "mixed"} | (changes or {}))
    text = resolve("small", yaml.safe_dump(recipe)).recipe.text
    half = {
        "class_path": "fedhq_lightning.callbacks.FixedAllocator",
        "init_args": {"allocation": 0.5},
        "trainer": {"checkpoint_every_n_rounds": 3},
    }
    if not Path("half.yaml").exists():
        Path("half.yaml").write_text(yaml.safe_dump(half))
    made = {"reference": "half" if "half=half.yaml" in allocators else None, "folder": Path("compared")}
    return Comparison("small", text, list(allocators), list(seeds), **(made | settings))


def run_dir(name: str, seed: int) -> Path:
    [found] = Path("compared/runs", f"{name}-seed-{seed}", "small").iterdir()
    return found


def without(figures: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in names}


@pytest.fixture
def quick(monkeypatch) -> None:
    """Where it is about rounds and cells, and not about what a run leaves."""
    make_quick(monkeypatch)


@pytest.fixture
def count_runs(monkeypatch) -> list[str]:
    """Names of the cells that are run, not read."""
    names: list[str] = []
    run_job = cell_runs.run_job

    def counted(job):
        names.append(f"{job.allocator}-{job.seed}")
        return run_job(job)

    monkeypatch.setattr(cell_runs, "run_job", counted)
    return names


class TestComparison:
    @pytest.mark.usefixtures("quick")
    def test_cells_are_paired_kept_and_not_run_again(self, count_runs):
        Compared(comparison()).run()
        assert count_runs == [f"{name}-0" for name in NAMES]
        kept = Compared(comparison()).kept()
        assert [cell.allocator for cell in kept.cells] == list(NAMES)
        assert not kept.missing
        by_name = {cell.allocator: cell for cell in kept.cells}

        # The same initial weights and cohorts, hence the same round 0 and the same clients.
        assert len({cell.rounds["metric_quantized"][0] for cell in kept.cells}) == 1
        rounds = {name: list(read_rounds(run_dir(name, 0) / "rounds.jsonl")) for name in NAMES}
        cohorts = [[[client.client_id for client in each.clients] for each in found] for found in rounds.values()]
        assert all(cohort == cohorts[0] for cohort in cohorts)
        tiers = [[[client.tier for client in each.clients] for each in found] for found in rounds.values()]
        assert all(tier == tiers[0] for tier in tiers)

        # Each is what it is called.
        assert sum(by_name["all-ptq"].rounds["qat"]) == 0
        assert sum(by_name["all-qat-fake"].rounds["qat"]) == 6
        assert "qat_kernel: fake" in (run_dir("all-qat-fake", 0) / "recipe.yaml").read_text()
        assert "qat_kernel: fake" not in (run_dir("half", 0) / "recipe.yaml").read_text()
        assert run_dir("half", 0).name.endswith("-half-seed-0")
        assert "checkpoint_every_n_rounds: 3" in (run_dir("half", 0) / "recipe.yaml").read_text()
        assert "checkpoint_every_n_rounds: 3" not in (run_dir("all-ptq", 0) / "recipe.yaml").read_text()
        free, total, tier = (by_name[name] for name in ("half", "random-total", "random-tier"))
        assert 0 < sum(free.rounds["qat"]) < 6
        assert sum(total.rounds["qat"]) == sum(free.rounds["qat"])
        assert list(tier.rounds["qat"]) == list(free.rounds["qat"])
        counted = [
            [Counter(t for _, t, mode in clients if mode == "qat") for clients in cell.clients] for cell in (free, tier)
        ]
        assert counted[0] == counted[1]

        # The same again, with one more of each: only those are run.
        count_runs.clear()
        Compared(comparison((*ALL, "all-fp"), seeds=(0, 1))).run(limit=2)
        assert count_runs == ["all-fp-0", "all-ptq-1"]
        assert len(Compared(comparison((*ALL, "all-fp"), seeds=(0, 1))).kept().missing) == 5

    @pytest.mark.usefixtures("quick")
    def test_the_seed_decides_weights_and_partition(self):
        Compared(comparison(("all-ptq",), seeds=(0, 1))).run()
        first, second = (yaml.safe_load((run_dir("all-ptq", seed) / "recipe.yaml").read_text()) for seed in (0, 1))
        for recipe, seed in ((first, 0), (second, 1)):
            assert recipe["trainer"]["seed"] == seed
            assert recipe["data"]["init_args"]["partitioner"]["init_args"]["seed"] == seed
        cells = Compared(comparison(("all-ptq",), seeds=(0, 1))).kept().cells
        assert cells[0].rounds["metric_quantized"] != cells[1].rounds["metric_quantized"]

    @pytest.mark.usefixtures("quick")
    def test_the_best_model_is_that_which_validation_likes_best(self):
        compared = Compared(comparison(("all-ptq", "all-qat"), seeds=(0, 1)))
        compared.run(limit=1)
        assert compared.best_model()[1] == run_dir("all-ptq", 0) / "model"
        compared.run()
        cell, model = compared.best_model()
        assert model == run_dir(cell.allocator, cell.seed) / "model"
        assert cell.summary["metric_quantized"] == max(
            each.summary["metric_quantized"] for each in compared.kept().cells
        )
        shutil.rmtree("compared/runs")
        assert compared.best_model() is None

    @pytest.mark.usefixtures("quick")
    def test_a_stopped_cell_goes_on_to_the_same_numbers(self, monkeypatch, count_runs):
        from fedhq_lightning.federated.rounds import RoundLoop

        Compared(comparison(("half=half.yaml",), folder=Path("whole"))).run()
        write = RoundLoop._write

        def stop_after_two(self, record, *arguments):
            write(self, record, *arguments)
            if record.round == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RoundLoop, "_write", stop_after_two)
            with pytest.raises(KeyboardInterrupt):
                Compared(comparison(("all-ptq", "half=half.yaml"))).run()
        assert not list(Path("compared/cells").iterdir())
        stopped = run_dir("all-ptq", 0)
        Compared(comparison(("all-ptq", "half=half.yaml"))).run()
        assert run_dir("all-ptq", 0) == stopped
        whole = read_cell(cell_path(Path("whole/cells"), "half", 0))
        again = read_cell(cell_path(Path("compared/cells"), "half", 0))
        assert again.rounds["metric_quantized"] == whole.rounds["metric_quantized"]
        assert again.clients == whole.clients
        assert again.fingerprint == whole.fingerprint

    def test_a_run_that_is_dropped_writes_no_model_and_gives_the_same_cell(self):
        Compared(comparison(("half=half.yaml",))).run()
        kept = read_cell(cell_path(Path("compared/cells"), "half", 0))
        assert list(Path("compared/runs").glob("**/model.pt2"))
        Compared(comparison(("half=half.yaml",), folder=Path("dropped"), keeps_runs=False)).run()
        dropped = read_cell(cell_path(Path("dropped/cells"), "half", 0))
        wall = [name for name in (*kept.rounds, *kept.summary) if "wall" in name or name == "allocator_seconds"]
        assert without(dropped.rounds, wall) == without(kept.rounds, wall)
        assert without(dropped.summary, wall) == without(kept.summary, wall)
        assert dropped.clients == kept.clients

    def test_runs_can_be_dropped_and_random_ones_matched_all_the_same(self):
        Compared(comparison(("half=half.yaml",), keeps_runs=False)).run()
        assert not list(Path("compared/runs").iterdir())
        Compared(comparison(("half=half.yaml", "random-tier"), keeps_runs=False)).run()
        free, random = Compared(comparison(("half=half.yaml", "random-tier"))).kept().cells
        assert list(free.rounds["qat"]) == list(random.rounds["qat"])
        sizes = [path.stat().st_size for path in Path("compared/cells").iterdir()]
        assert max(sizes) < 5000

    @pytest.mark.usefixtures("quick")
    def test_the_best_boundary_is_chosen_on_other_seeds(self, count_runs, monkeypatch):
        monkeypatch.setattr(contestants, "GRID_SLACKS", (0.0, 9.0))
        monkeypatch.setattr(contestants, "GRID_SHARES", (0.0,))
        asked = comparison(("all-ptq", "best-fixed"), grid_seeds=(5,), changes={"trainer.max_rounds": 1})
        Compared(asked).run()
        kept = Compared(asked).kept()
        assert count_runs == ["all-ptq-0", "fixed:0:0-5", "fixed:9:0-5", f"{kept.best_fixed}-0"]
        assert [cell.allocator for cell in kept.cells] == ["all-ptq", "best-fixed"]
        tight, loose = (read_cell(cell_path(Path("compared/cells"), name, 5)) for name in ("fixed:0:0", "fixed:9:0"))
        assert sum(loose.rounds["qat"]) > sum(tight.rounds["qat"])
        # The loose one takes longer: where the tight one's only round ends, it is still untrained.
        assert loose.summary["virtual_seconds"] > tight.summary["virtual_seconds"]
        better = tight.rounds["metric_quantized"][1] >= loose.rounds["metric_quantized"][0]
        assert kept.best_fixed == ("fixed:0:0" if better else "fixed:9:0")

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:uplink 'weights'")
    def test_several_processes_compute_the_same(self, capfd):
        few_bits = {"scheme": "w2a8", "edge_bits": None}
        asked = comparison(seeds=(0, 1), changes={"trainer.scheme": few_bits, "trainer.uplink": "weights"})
        Compared(asked).run(workers=2)
        said = capfd.readouterr().err.splitlines()
        assert {line.partition(" 'weights'")[0] for line in said} == {"fedhq: warning: uplink"}
        alone = replace(asked, folder=Path("one"), runs=None)
        Compared(alone).run()
        many, one = (Compared(each).kept().cells for each in (asked, alone))
        assert [cell.rounds["metric_quantized"] for cell in many] == [cell.rounds["metric_quantized"] for cell in one]
        assert [cell.clients for cell in many] == [cell.clients for cell in one]

    @pytest.mark.corner
    def test_cells_are_one_group_at_wandb_where_the_recipe_logs(self, tmp_path):
        Compared(comparison(("all-qat",), changes={"trainer.logger": True, "trainer.max_rounds": 1})).run()
        assert not {"WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_NAME"} & os.environ.keys()
        (run,) = run_records(tmp_path)
        assert (run.run_group, run.job_type, run.display_name) == ("compare-compared", "all-qat", "all-qat, seed 0")


def run_records(folder: Path) -> list[Any]:
    """How W&B's offline runs below a folder call themselves."""
    files = folder.rglob("offline-run-*/*.wandb")
    return [next(each.run for each in _records(file) if each.WhichOneof("record_type") == "run") for file in files]


class TestRefused:
    def test_other_settings_in_the_same_folder(self):
        Compared(comparison())
        with pytest.raises(ConfigurationError, match=r"another comparison.*trainer.scheme was 'w4a8', is now 'w2a8'"):
            Compared(comparison(changes={"trainer.scheme": "w2a8"}))
        with pytest.raises(ConfigurationError, match=r"model.init_args.lr was 0.1, is now 0.2"):
            Compared(comparison(changes={"model.init_args.lr": 0.2}))
        # Neither the recipe's own allocator nor its seed counts, nor what changes no bit.
        Compared(comparison(changes={"trainer.seed": 7, "trainer.callbacks": None, "trainer.logger": True}))

    def test_arguments_that_the_package_has_gained_since_do_not_count(self):
        Compared(comparison())
        path = Path("compared/comparison.json")
        kept = json.loads(path.read_text())
        del kept["settings"]["trainer"]["ema_decay"]
        del kept["settings"]["model"]["init_args"]["weight_decay"]
        path.write_text(json.dumps(kept))
        Compared(comparison())
        with pytest.raises(ConfigurationError, match=r"trainer.ema_decay was None, is now 0.5"):
            Compared(comparison(changes={"trainer.ema_decay": 0.5}))

    def test_a_cell_of_other_settings_by_name(self):
        def own(by: str) -> Comparison:
            content = {
                "class_path": "fedhq_lightning.callbacks.FixedAllocator",
                "init_args": {"allocation": 0.5, "by": by},
            }
            Path("half.yaml").write_text(yaml.safe_dump(content))
            return comparison(("half=half.yaml",))

        Compared(own("random")).run()
        with pytest.raises(ConfigurationError, match=r"half-seed-0.json was run with other settings.*'by': 'random'"):
            Compared(own("divergence"))

    def test_a_folder_of_other_things(self):
        Path("compared").mkdir()
        Path("compared/thesis.tex").touch()
        with pytest.raises(ConfigurationError, match="holds other things"):
            Compared(comparison())

    def test_a_damaged_cell(self):
        Compared(comparison())
        Path("compared/cells/all-ptq-seed-0.json").write_text("{")
        with pytest.raises(ConfigurationError, match=r"all-ptq-seed-0.json is damaged.*remove it"):
            Compared(comparison())

    def test_a_second_process(self):
        compared = Compared(comparison())
        with (
            compared.locked(),
            pytest.raises(ConfigurationError, match="another process"),
            Compared(comparison()).locked(),
        ):
            pass

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"seeds": ()}, "seeds: none given"),
            ({"seeds": (1, 1)}, "each once"),
            ({"allocators": ("hybird",)}, "did you mean 'hybrid'"),
            ({"changes": {"trainer.scheme": None}}, "trainer.scheme is not set"),
            ({"allocators": ("random-total",)}, "neither hybrid nor coarse"),
            ({"allocators": ("mine=fedhq_lightning.callbacks.FixedAlocator",)}, "allocator 'mine': .*FixedAlocator"),
            ({"allocators": ("mine=fedhq_lightning.callbacks.ProgressDisplay",)}, "is no Allocator"),
            ({"allocators": ("best-fixed",), "grid_seeds": (0, 3)}, "chosen on other seeds"),
            ({"allocators": ("all-ptq",), "grid_seeds": (3,)}, "best-fixed, which is not among"),
        ],
    )
    def test_what_cannot_work_before_anything_is_made(self, settings, message):
        with pytest.raises(ConfigurationError, match=message):
            Compared(comparison(**settings))
        assert not Path("compared").exists()

    def test_a_run_whose_metric_is_never_logged(self):
        module = Path("silent.py")
        module.write_text(
            "from fedhq_lightning.models import MLP\n\n\nclass Silent(MLP):\n    validation_step = None\n"
        )
        # Refused or run, it must not pass as a comparison.
        with pytest.raises(ConfigurationError):
            Compared(comparison(("all-ptq",), changes={"model.class_path": "silent.Silent"})).run()
