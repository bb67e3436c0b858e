"""Which kernels a measurement speaks for, and `fedhq profile` from end to end."""

import io
import re
import signal
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn

from fedhq_lightning.cli import profile_recipe
from fedhq_lightning.cli.main import main
from fedhq_lightning.cli.profile_tables import closing, print_profile, profile_text
from fedhq_lightning.devices import load_profile
from fedhq_lightning.profiling import host_device, host_profile, profile_host
from fedhq_lightning.profiling.host_prediction import _by_kernel
from fedhq_lightning.profiling.host_profile import HostProfile, LayerProfile, PredictedStep, as_patterns, disagreements
from fedhq_lightning.profiling.profile_host import kernels_that_differ, rule_kernel
from fedhq_lightning.profiling.timing import TimedBatches, Timing, time_in_turns
from fedhq_lightning.quantize import LaneOptions, LayerScheme, QuantScheme, kernel_choice, prepare
from fedhq_lightning.quantize.native.lanes import kernels_of_torch
from fedhq_lightning.recipe import files as recipe_files

from ..small_recipe import write_recipe

W4A8, W4 = LayerScheme(4, 8), LayerScheme(4)


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch):
    """`fedhq` adds the working directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def layer(name="a", ptq="fp", qat="auto", **milliseconds) -> LayerProfile:
    """One layer whose kernels took so long: ptq_int8=2.0."""
    timings = {tuple(key.split("_")): Timing((value / 1e3,)) for key, value in milliseconds.items()}
    return LayerProfile(name, ((32, 64),), {"ptq": ptq, "qat": qat}, timings)


EVEN = {"ptq_int8": 1.0, "ptq_fp": 1.0, "qat_int8": 1.0, "qat_auto": 1.0, "qat_fake": 1.0}
CHOICES = {
    "equal": ({}, {}),
    "faster by 9 %": ({"ptq_fp": 1.09}, {}),
    "faster by 12 %": ({"ptq_fp": 1.12}, {"ptq": {"a": "int8"}}),
    "the rule is fastest": ({"ptq_int8": 9.0, "qat_int8": 9.0, "qat_fake": 9.0}, {}),
    "fake": ({"qat_fake": 0.5, "qat_int8": 0.6}, {"qat": {"a": "fake"}}),
    "both modes": ({"ptq_int8": 0.5, "qat_int8": 0.5}, {"ptq": {"a": "int8"}, "qat": {"a": "int8"}}),
}


@pytest.mark.parametrize(("changes", "expected"), CHOICES.values(), ids=CHOICES)
def test_choice_from_timings(changes, expected):
    assert disagreements([layer(**EVEN | changes)]) == expected


def test_the_rules_int8_gives_way():
    slow = layer("b", ptq="int8", qat="int8", ptq_int8=2.0, ptq_fp=1.0, qat_int8=2.0, qat_fake=1.0)
    assert disagreements([layer(**EVEN), slow]) == {"ptq": {"b": "fp"}, "qat": {"b": "fake"}}


def test_gain_is_paired_by_round():
    """A slow phase of the machine that meets both kernels alike speaks for neither."""
    timings = {("ptq", "fp"): Timing((1.0, 5.0, 5.5)), ("ptq", "int8"): Timing((0.98, 4.9, 3.0))}
    noisy = LayerProfile("a", ((1,),), {"ptq": "fp"}, timings)
    assert noisy.fastest("ptq") == "int8"
    assert noisy.gain("ptq") == pytest.approx(5.0 / 4.9)


def profile(*layers: LayerProfile, decided=None, **milliseconds) -> HostProfile:
    steps = {"fp": 4.0, "ptq": 2.0, "qat": 3.0, "qat fake": 8.0}
    steps |= {lane.replace("_", " "): value for lane, value in milliseconds.items()}
    timings = {lane: Timing((value / 1e3,)) for lane, value in steps.items()}
    return HostProfile("cpu", 1, "w4a8", 3, 32, layers, (), timings, 2.5, decided or {})


def test_a_mode_is_frozen_only_where_the_whole_step_gains():
    faster = layer(**EVEN | {"ptq_int8": 0.5, "qat_fake": 0.5})
    both = profile(faster, ptq_measured=1.5, qat_measured=3.5)
    assert both.layer_kernels == {"ptq": {"a": "int8"}}
    assert closing(both) == (
        "--write freezes 1 kernel: PTQ int8 in a; not QAT fake in a, since the whole step is not faster with it."
    )
    demanded = profile(faster, decided={"qat": "int8"}, ptq_measured=2.5, qat_measured=1.0)
    assert demanded.layer_kernels == {}
    assert closing(demanded) == (
        "--write freezes no kernel; not PTQ int8 in a, since the whole step is not faster with it; not QAT fake in a, "
        "since the recipe demands QAT int8."
    )


def test_text():
    grouped = layer("conv.with.a.name", ptq="fp", qat="auto", ptq_fp=0.5, qat_auto=1.0, qat_fake=0.25)
    text = profile_text(profile(layer(**EVEN | {"ptq_int8": 1234.0}), grouped, qat_measured=2.0), "mine")
    assert text.splitlines() == [
        "mine, w4a8: measured wall times of this host (cpu, 1 thread), one batch of client 3, 32 examples; medians of "
        "blocks that take turns, ratios paired by turn; first calls, with compilation, took 2.5 s more",
        "  layer             input  PTQ int8    PTQ fp  QAT int8  QAT auto  QAT fake  over 10 % faster",
        "  a                 32x64      1234   [1.00]*      1.00   [1.00]*      1.00",
        "  conv.with.a.name  32x64         -  [0.500]*         -    [1.00]    0.250*  QAT fake 4.00x",
        text.splitlines()[4],
        text.splitlines()[5],
        "  fp                    4.00  1.00x",
        "  PTQ                   2.00  2.00x",
        "  QAT                   3.00  1.33x",
        "  QAT, kernel fake      8.00  0.50x",
        "  QAT, fastest kernels  2.00  2.00x",
        "--write freezes 1 kernel: QAT fake in conv.with.a.name.",
    ]


@pytest.mark.parametrize("backward", ["int8", "bf16"])
def test_layers_are_predicted_with_the_gradients_of_the_recipe(backward):
    module = nn.Sequential(nn.Linear(4, 4))
    lanes = {mode: (mode, LaneOptions(qat_backward=backward)) for mode in ("ptq", "qat")}
    found = _by_kernel(module, QuantScheme("w4a8").for_layers(module), lanes)
    assert all(each.backward_of_values == ({"0"} if backward == "bf16" else set()) for each in found.values())


def test_predictions_are_shown_beside_what_was_measured():
    predicted = {"fp": PredictedStep(0.003, 0.004), "qat fake": PredictedStep(0.012, 0.009)}
    host = replace(load_profile("laptop-ryzen-7-7840u"), name="host")
    lines = profile_text(replace(profile(layer(**EVEN)), predicted=predicted, host=host), "mine").splitlines()
    assert lines[-5:-1] == [
        "  lane              measured  shipped calibration  fitted here",
        "  fp                    4.00          3.00 (-25%)  4.00 (+0%)",
        "  QAT, kernel fake      8.00          12.0 (+50%)  9.00 (+12%)",
        "this host as a device: fp32 845 GFLOP/s, bf16 1690 GFLOP/s, int8 3379 GFLOP/s, copy 120.0 GB/s, 6.0 us an "
        "operator; in the fit: the layers above and the step of fp, no other",
    ]
    assert "Whole training step, predicted" not in profile_text(profile(layer(**EVEN)), "mine")


def test_a_host_is_a_device(monkeypatch):
    monkeypatch.setattr(host_device, "_ROUNDS", 2)
    monkeypatch.setattr(host_device, "_BLOCK_SECONDS", 1e-3)
    host = host_device.measure_host(torch.device("cpu"))
    assert host.linear_slowdown >= 1
    assert 1e9 < host.profile.fp32_flops_per_second < 1e14
    assert 1e-7 < host.profile.operator_seconds < 1e-3
    assert 1e8 < host.profile.memory_bytes_per_second < 1e12
    assert (host.profile.int8_training_gain is None) != kernel_choice.has_fast_integers(torch.device("cpu"))


def test_table_on_a_terminal(monkeypatch):
    monkeypatch.setattr("fedhq_lightning.cli.profile_tables.on_terminal", lambda console: True)
    console = Console(width=100, record=True, file=io.StringIO())
    print_profile(profile(layer("layers[0]", **EVEN)), "mine", console)
    shown = console.export_text()
    assert "layers[0]" in shown
    assert "[1.00]*" in shown, "brackets are no markup"


LAYERS = {
    "small linear": (nn.Linear(64, 64), (8, 64)),
    "large linear": (nn.Linear(512, 512), (4, 64, 512)),
    "small convolution": (nn.Conv2d(3, 8, 3), (2, 3, 8, 8)),
    "large convolution": (nn.Conv2d(64, 64, 3, padding=1), (8, 64, 24, 24)),
    "one image": (nn.Conv2d(64, 64, 3, padding=1), (64, 64, 64)),
    "flat convolution": (nn.Conv1d(64, 64, 5), (16, 64, 300)),
    "grouped convolution": (nn.Conv2d(64, 64, 3, padding=1, groups=2), (8, 64, 32, 32)),
}


@pytest.mark.parametrize("own_kernels", [True, pytest.param(False, marks=pytest.mark.slow)])  # torch compiles its own
@pytest.mark.parametrize("grid", [W4A8, W4], ids=str)
@pytest.mark.parametrize(("plain", "shape"), LAYERS.values(), ids=LAYERS)
def test_rule_is_what_auto_does(monkeypatch, plain, shape, grid, own_kernels):
    """Told without running it; seen here in the graph that `auto` leaves."""
    monkeypatch.setattr(kernel_choice, "has_fast_integers", lambda device: True)
    x = torch.randn(shape)
    with nullcontext() if own_kernels else kernels_of_torch():
        for mode in ("ptq", "qat"):
            scheme = QuantScheme(str(grid), edge_bits=None)
            module = prepare(nn.Sequential(plain), mode, scheme, LaneOptions())
            nodes, names = [module(x).grad_fn], []
            while nodes:
                node = nodes.pop()
                names.append(node.name())
                nodes += [each for each, _ in node.next_functions if each is not None]
            prepare(module, "fp", scheme)
            is_int8 = any(re.search(r"(Int8|Qat|Grid)(Linear|Convolution)(Backward|>)", name) for name in names)
            rule = rule_kernel(mode, plain, grid, [x])
            assert (rule == "int8") == is_int8, names
            assert rule in kernels_that_differ(mode, plain, grid, rule)


@pytest.mark.usefixtures("torch_kernels")
def test_rule_where_calls_differ(monkeypatch):
    monkeypatch.setattr(kernel_choice, "has_fast_integers", lambda device: True)
    plain = nn.Linear(512, 512)
    calls = [torch.randn(256, 512), torch.randn(2, 512)]
    assert rule_kernel("ptq", plain, W4A8, calls) == rule_kernel("qat", plain, W4A8, calls) == "auto"
    assert kernels_that_differ("ptq", plain, W4A8, "auto") == ("int8", "auto", "fp")
    assert kernels_that_differ("qat", plain, W4A8, "int8") == ("int8", "fake")
    assert kernels_that_differ("qat", plain, W4, "auto") == ("auto", "fake")


def test_patterns_stand_for_themselves():
    names = ["a[0]", "a0", "b*"]
    options = LaneOptions(layer_kernels={"ptq": as_patterns({"a[0]": "int8", "b*": "fp"})})
    assert options.kernels_of("ptq", names) == {"a[0]": "int8", "a0": "auto", "b*": "fp"}


def test_turns_go_there_and_back():
    order: list[str] = []

    def work(name, seconds):
        def run(repeats):
            order.append(f"{name}{repeats}")
            return next(seconds)

        return run

    works = {"a": work("a", iter([9.0, 0.5, 3.0, 1.0, 2.0])), "b": work("b", iter([9.0, 4.0, 7.0, 8.0, 6.0]))}
    found = time_in_turns(works, block_seconds=1.0, rounds=3)
    assert order == ["a2", "a1", "b2", "b1", "a2", "b1", "b1", "a2", "a2", "b1"]
    assert (found["a"].blocks, found["a"].seconds, found["b"].seconds) == ((3.0, 1.0, 2.0), 2.0, 7.0)
    assert found["a"].speed_over(found["b"]) == pytest.approx(3.0)


def test_timed_batches_stop_with_their_reader():
    batches = TimedBatches("batch", 3, torch.device("cpu"))
    assert len(batches) == 3
    for batch in batches:
        assert batch == "batch"
        break
    assert batches.seconds > 0


@pytest.fixture
def quick(monkeypatch):
    """Blocks of one repeat: the way through, not the figures."""
    monkeypatch.setattr(profile_host, "_ROUNDS", 2)
    monkeypatch.setattr(profile_host, "_LAYER_BLOCK_SECONDS", 1e-6)
    monkeypatch.setattr(profile_host, "_STEP_BLOCK_SECONDS", 1e-6)
    monkeypatch.setattr(host_device, "_ROUNDS", 2)
    monkeypatch.setattr(host_device, "_BLOCK_SECONDS", 1e-6)


@pytest.mark.corner
@pytest.mark.usefixtures("quick")
def test_profile_of_a_shipped_recipe(capsys, tmp_path):
    threads = torch.get_num_threads()
    assert main(["profile", "digits-smoke", "--trainer.threads=2"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith("digits-smoke, w4a8: measured wall times of this host (cpu, 2 threads)")
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["layers.1", "layers.3", "layers.5"]
    assert all(line.count("[") == line.count("*") == 2 for line in lines[2:5])
    assert [line.split("  ")[1] for line in lines[7:11]] == ["fp", "PTQ", "QAT", "QAT, kernel fake"]
    title = next(number for number, line in enumerate(lines) if line.startswith("Whole training step, predicted"))
    assert lines[title + 1].split("  ")[1:2] == ["lane"]
    predicted = [line for line in lines[title + 2 : -2]]
    assert [line.split("  ")[1] for line in predicted[:4]] == ["fp", "PTQ", "QAT", "QAT, kernel fake"]
    assert all(re.search(r"\([+-]\d+%\)\s.*\([+-]\d+%\)$", line) for line in predicted)
    assert lines[-2].startswith("this host as a device: fp32 ")
    assert lines[-1].startswith("--write freezes ")
    assert torch.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == [], "no run, no W&B"


FASTER = {"ptq": {"layers.1": "int8"}, "qat": {"layers.3": "fake"}}


@pytest.fixture
def measured(monkeypatch):
    """A measurement with a known outcome."""
    layers = [
        layer("layers.1", **EVEN | {"ptq_int8": 0.5}),
        layer("layers.3", **EVEN | {"qat_fake": 0.5}),
    ]
    found = profile(*layers, ptq_measured=1.0, qat_measured=1.0)
    monkeypatch.setattr(profile_recipe, "profile_host", lambda *arguments: found)


@pytest.mark.corner
@pytest.mark.usefixtures("measured")
def test_write_of_a_shipped_recipe_leaves_one_that_runs(capsys, tmp_path):
    assert main(["profile", "digits-smoke", "--write"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.endswith("digits-smoke.yaml written; run it with: fedhq run ./digits-smoke.yaml\n")
    text = (tmp_path / "digits-smoke.yaml").read_text()
    assert text.startswith(recipe_files.find("digits-smoke")[1])
    assert yaml.safe_load(text)["trainer"]["lanes"] == {"layer_kernels": FASTER}
    assert main(["run", "./digits-smoke.yaml", "--trainer.logger=false", "--trainer.max_rounds=1"]) == 0
    run_dir = next((tmp_path / "runs" / "digits-smoke").iterdir())
    assert yaml.safe_load((run_dir / "recipe.yaml").read_text())["trainer"]["lanes"]["layer_kernels"] == FASTER


@pytest.mark.usefixtures("measured")
def test_write_into_a_file(capsys, tmp_path):
    (tmp_path / "real").mkdir()
    path = write_recipe(tmp_path / "real" / "mine.yaml")
    path.write_text(path.read_text() + "# the end\n")
    (tmp_path / "mine.yaml").symlink_to(path)
    for expected in ("./real/mine.yaml", "stays as it is"):
        assert main(["profile", "mine.yaml", "--write"]) == 0
        assert capsys.readouterr().out.rstrip().endswith(expected)
    assert (tmp_path / "mine.yaml").is_symlink()
    assert yaml.safe_load(path.read_text())["trainer"]["lanes"] == {"layer_kernels": FASTER}
    assert "# the end" in path.read_text()


@pytest.mark.usefixtures("measured")
def test_overrides_are_not_written(capsys, tmp_path):
    assert main(["profile", "digits-smoke", "--write", "--trainer.threads=2"]) == 0
    assert "written, without --trainer.threads=2; run it" in capsys.readouterr().out
    assert "threads" not in yaml.safe_load((tmp_path / "digits-smoke.yaml").read_text())["trainer"]


@pytest.mark.usefixtures("measured")
def test_what_cannot_be_edited_is_shown(capsys, tmp_path):
    recipe = yaml.safe_load(write_recipe(tmp_path / "mine.yaml").read_text())
    text = yaml.safe_dump(recipe, default_flow_style=True)
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["profile", "mine.yaml", "--write"]) == 2
    shown = capsys.readouterr()
    assert yaml.safe_load(shown.out.partition("paste this into mine.yaml:\n")[2]) == {
        "trainer": {"lanes": {"layer_kernels": FASTER}}
    }
    assert shown.err == (
        "fedhq: recipe mine: mine.yaml is left as it is, its YAML cannot be changed safely; paste the lines above into "
        "it\n"
    )
    assert (tmp_path / "mine.yaml").read_text() == text


REFUSED = {
    "unknown recipe": (
        ["digits-smok"],
        "unknown recipe 'digits-smok': shipped are ...; a file of your own ends in .yaml; did you mean 'digits-smoke'?",
    ),
    "no such file": (["nowhere.yaml"], "recipe file nowhere.yaml: No such file or directory"),
    "no scheme": (
        ["digits-smoke", "--trainer.scheme=null", "--trainer.callbacks=null"],
        "recipe digits-smoke: trainer.scheme is not set, so there are no PTQ and QAT lanes to measure; give one: "
        "--trainer.scheme=w4a8",
    ),
    "a file is there": (
        ["mnist5k-hybrid", "--write"],
        "recipe mnist5k-hybrid: mnist5k-hybrid.yaml is there already, and --write leaves it alone; profile that file "
        "with fedhq profile ./mnist5k-hybrid.yaml --write, or remove it",
    ),
    "unknown key": (
        ["digits-smoke", "--trainer.max_round=3"],
        "recipe digits-smoke: unknown key 'trainer.max_round'; did you mean 'trainer.max_rounds'?",
    ),
    "unknown option": (["digits-smoke", "--wirte"], "recipe digits-smoke: unknown key 'wirte'; ..."),
    "kernels for layers that are not there": (
        ["digits-smoke", "--trainer.lanes.layer_kernels={ptq: {nothing: fp}}"],
        "recipe digits-smoke: ...layer_kernels ptq 'nothing' matches no layer; ...",
    ),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("arguments", "expected"), REFUSED.values(), ids=REFUSED)
def test_refusals(capsys, tmp_path, arguments, expected):
    (tmp_path / "mnist5k-hybrid.yaml").write_text("mine")
    assert main(["profile", *arguments]) == 2
    shown = capsys.readouterr()
    pattern = ".*".join(map(re.escape, expected.split("...")))
    assert re.fullmatch(f"fedhq: {pattern}\n", shown.err), shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["mnist5k-hybrid.yaml"]
    assert (tmp_path / "mnist5k-hybrid.yaml").read_text() == "mine"


@pytest.mark.parametrize("names_other_layers", [True, False])
def test_kernels_that_fit_only_the_overrides(capsys, monkeypatch, tmp_path, names_other_layers):
    name = "features.0" if names_other_layers else "layers.1"
    found = profile(layer(name, **EVEN | {"ptq_int8": 0.5}), ptq_measured=1.0)
    monkeypatch.setattr(profile_recipe, "profile_host", lambda *arguments: found)
    code = main(["profile", "digits-smoke", "--write", "--model.hidden_sizes=[8]"])
    said = capsys.readouterr().err
    assert code == (2 if names_other_layers else 0)
    assert ("digits-smoke.yaml is not written: what was measured with --model.hidden_sizes=[8]" in said) == bool(code)
    assert (tmp_path / "digits-smoke.yaml").exists() != names_other_layers


def test_interrupted_although_a_library_swallows_it(capsys, monkeypatch, tmp_path):
    def measure(settings, fabric, module, datamodule, on_progress):
        with suppress(KeyboardInterrupt):  # as a compiler does
            signal.raise_signal(signal.SIGINT)
        on_progress("the next layer")
        raise AssertionError("went on")

    monkeypatch.setattr(profile_recipe, "profile_host", measure)
    before = signal.getsignal(signal.SIGINT)
    assert main(["profile", "digits-smoke", "--write"]) == 130
    assert capsys.readouterr().err == "fedhq: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.corner
def test_a_recipe_that_chooses_kernels_gets_lines_of_its_own(capsys, monkeypatch, tmp_path):
    for name in ("_ROUNDS", "_FEWEST_ROUNDS"):
        monkeypatch.setattr(profile_host, name, 1)
    monkeypatch.setattr(host_profile, "NOTABLE", 1e9)
    lanes = {"qat_kernel": "int8", "layer_kernels": {"ptq": {"*": "int8"}}}
    write_recipe(tmp_path / "mine.yaml", {"trainer.lanes": lanes, "trainer.accumulate_grad_batches": 2})
    assert main(["profile", "mine.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "PTQ, as the recipe has it" in shown
    assert "QAT, as the recipe has it" in shown
