"""The page of benchmarks/run_to_run.py."""

import run_to_run


def test_differences_are_paired_and_of_the_second_run():
    first = [run_to_run.Outcome(0.94, 0.93, seconds, 0.3) for seconds in (14.0, 15.0, 16.0)]
    second = [run_to_run.Outcome(0.95, 0.93, seconds - 1, 0.6) for seconds in (14.0, 15.0, 16.0)]
    text = run_to_run.page([0, 1, 2], list(zip(first, second, strict=True)))
    assert "| 1 | 94.0 | 95.0 | 93.0 | 93.0 | 15.0 | 14.0 | 30% | 60% |" in text
    assert "deployed +1.0 [+1.0, +1.0] points, end +0.0" in text
    assert "virtual seconds -1.0 [-1.0, -1.0]" in text


def test_a_run_that_has_ended_is_not_repeated(tmp_path):
    done = tmp_path / "recipe" / "time"
    done.mkdir(parents=True)
    (done / "summary.json").write_text("{}")
    assert run_to_run.run(tmp_path, 0, None) == done
