"""The end of a run: what it takes, and what is left out where nobody asks for it."""

import pytest

from fedhq_lightning.finish import complete
from fedhq_lightning.run.run import Run

from ..small_federation import SmallData, SmallModule, same_bits
from ..trainer.runs import checkpoint, fit, records

pytestmark = pytest.mark.usefixtures("no_report")


def test_without_a_final_evaluation_its_figures_are_null_and_the_model_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(complete, "_inference", lambda *arguments: {"threads": 1})
    whole, state = fit(max_rounds=2, scheme="w4a8")
    short, same_state = fit(max_rounds=2, scheme="w4a8", final_evaluation=False)
    assert same_bits(state, same_state)
    assert short.summary.keys() == whole.summary.keys()
    told = {name for name, value in whole.summary.items() if value is not None}
    assert told - {name for name, value in short.summary.items() if value is not None} == {
        *("test_metrics", "worst_client", "per_class", "inference")
    }
    assert short.summary["export"] == "model.pt2"
    best = records(short)[short.summary["best_round"]]
    assert short.summary["metric_quantized"] == best.metric_quantized == whole.summary["metric_quantized"]
    assert "final_evaluation" in whole.summary["wall_phases"]
    assert "final_evaluation" not in short.summary["wall_phases"]


def test_the_report_is_told_the_whole_wall_time_its_own_included(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(complete, "write_report", lambda run, pictures: told.append(run.summary["wall_phases"]))
    done, _ = fit(max_rounds=1)
    assert told == [done.summary["wall_phases"]] == [Run(done.run_dir).summary["wall_phases"]]
    assert told[0].keys() >= {"set_up", "fit", "deploy", "report"}


def test_the_phases_hold_the_rounds_and_go_on_in_a_resumed_run() -> None:
    first, _ = fit(max_rounds=1)
    phases = first.summary["wall_phases"]
    assert phases.keys() >= {"set_up", "allocate", "fit", "aggregate", "evaluate", "save", "deploy", "report", "other"}
    assert phases["fit"] == pytest.approx(first.summary["fit_wall_seconds"], rel=0.01)
    in_rounds = sum(phases[name] for name in ("allocate", "fit", "aggregate", "evaluate"))
    assert in_rounds <= first.summary["wall_seconds"] * 1.001
    saved = checkpoint(first)["wall_phases"]
    more, _ = fit(SmallModule(), SmallData(), first.run_dir, max_rounds=2)
    assert more.summary["wall_phases"]["fit"] > saved["fit"]
    assert more.summary["fit_wall_seconds"] == pytest.approx(more.summary["wall_phases"]["fit"], rel=0.01)
