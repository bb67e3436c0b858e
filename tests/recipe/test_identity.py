"""Whether two runs are the same, and what differs."""

from typing import Any

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe.identity import Change, changes, check_same, differing, fingerprint, in_words, without_free

BEFORE = {"trainer": {"seed": 1, "devices": 1, "callbacks": [{"patience": 3}]}, "model": {"lr": 0.1}}


def changed(**trainer_settings: Any) -> dict[str, Any]:
    return BEFORE | {"trainer": BEFORE["trainer"] | trainer_settings}


def test_the_same_settings_may_resume() -> None:
    check_same(BEFORE, changed(), frozenset())
    check_same(BEFORE, changed(devices=2), frozenset({"trainer.devices"}))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (changed(seed=2), r"trainer.seed was 1, is now 2; resume with"),
        (changed(new=5), r"trainer.new was None, is now 5"),
        (changed(callbacks=[{"patience": 4}]), r"trainer.callbacks.* was .*3.*, is now .*4"),
        ({"trainer": BEFORE["trainer"], "model": {}}, r"model.lr was 0.1, is now None"),
        (changed(a=1, b=2, c=3, d=4, e=5), r"; and 2 more; resume"),
    ],
)
def test_other_settings_may_not(now: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        check_same(BEFORE, now, frozenset())
    assert str(raised.value).startswith("resuming with another recipe: ")


def test_changes_come_in_the_settings_order() -> None:
    before = {"model": {"lr": 0.1, "sizes": [16, 8]}, "data": {"name": "digits"}}
    now = {"model": {"lr": 0.1, "sizes": [16, 4]}, "data": {"name": "mnist"}, "more": {"a": 1}}
    assert changes(before, now) == [
        Change("model.sizes.1", 8, 4),
        Change("data.name", "digits", "mnist"),
        Change("more", None, {"a": 1}),
    ]
    assert changes(before, before) == []
    assert changes(before, now, free={"model", "data.name"}) == [Change("more", None, {"a": 1})]


def test_lists_of_other_lengths_are_told_whole_unless_they_hold_objects() -> None:
    assert changes({"x": [1, 2]}, {"x": [1]}) == [Change("x", [1, 2], [1])]
    assert changes({"x": [{"a": 1}]}, {"x": [{"a": 1}, {"b": 2}]}) == [Change("x.1", None, {"b": 2})]


def test_another_class_counts_once() -> None:
    before = {"model": {"class_path": "A", "init_args": {"lr": 0.1}}}
    now = {"model": {"class_path": "B", "init_args": {"depth": 2}}}
    assert changes(before, now) == [Change("model.class_path", "A", "B")]


def test_what_is_not_set_counts_as_its_default() -> None:
    asked: list[tuple[str, str | None, str]] = []

    def default_of(name: str, owner: str | None, key: str) -> Any:
        asked.append((name, owner, key))
        return 0.5

    before = {"model": {"class_path": "A", "init_args": {}}}
    assert changes(before, {"model": {"class_path": "A", "init_args": {"lr": 0.5}}}, default_of=default_of) == []
    assert asked == [("model.init_args", "A", "lr")]
    now = {"model": {"class_path": "A", "init_args": {"lr": 0.7}}}
    assert changes(before, now, default_of=default_of) == [Change("model.init_args.lr", 0.5, 0.7)]


class TestADefaultThatHasChanged:
    """Runs say how their QAT lane's gradients are computed; those from before it was `int8` may not."""

    OLD = ({"trainer": {"lanes": None}}, {"trainer": {"lanes": {}}}, {"trainer": {"lanes": {"class_path": "Lanes"}}})

    @pytest.mark.parametrize("before", OLD)
    @pytest.mark.parametrize("where", ["", "recipe"])
    def test_a_run_that_does_not_say_it_had_the_old_one(self, before: dict[str, Any], where: str) -> None:
        int8, bf16 = ({"trainer": {"lanes": {"qat_backward": each}}} for each in ("int8", "bf16"))
        if where:
            before, int8, bf16 = {where: before}, {where: int8}, {where: bf16}
        name = ".".join([*([where] if where else []), "trainer.lanes.qat_backward"])
        assert changes(before, int8) == [Change(name, "bf16", "int8")]
        assert changes(before, bf16) == []

    def test_other_options_count_as_their_defaults(self) -> None:
        now = {"trainer": {"lanes": {"range_lr": 0.01, "qat_backward": "bf16"}}}
        asked: list[tuple[str, str]] = []

        def default_of(name: str, owner: str | None, key: str) -> Any:
            asked.append((name, key))
            return 0.01

        assert changes({"trainer": {"lanes": None}}, now, default_of=default_of) == []
        assert asked == [("trainer.lanes", "range_lr")]

    def test_two_that_say_it_are_compared_as_they_are(self) -> None:
        before, now = ({"trainer": {"lanes": {"qat_backward": each}}} for each in ("int8", "bf16"))
        assert changes(before, now) == [Change("trainer.lanes.qat_backward", "int8", "bf16")]
        assert changes(before, before) == []


def test_three_changes_are_named() -> None:
    found = [Change(name, 1, 2) for name in "abcde"]
    assert in_words(found) == "a was 1, is now 2; b was 1, is now 2; c was 1, is now 2; and 2 more"
    assert in_words(found[:3]).endswith("c was 1, is now 2")


def test_what_changes_no_bit_is_left_out_of_a_copy() -> None:
    recipe = {"model": {"lr": 0.1}, "trainer": {"seed": 1, "devices": 2, "logger": {"class_path": "L"}}}
    assert without_free(recipe) == {"model": {"lr": 0.1}, "trainer": {"seed": 1}}
    assert recipe["trainer"]["devices"] == 2


def test_the_fingerprint_is_that_of_the_cells_that_are_kept() -> None:
    assert fingerprint([{"b": 1, "a": 2}, None]) == fingerprint([{"a": 2, "b": 1}, None]) == "a6ae68e5039a8d97"


def test_only_keys_that_differ_are_listed() -> None:
    runs = [
        {"trainer": {"callbacks": [{"class_path": "A", "init_args": {"fine": True}}], "rounds": 3}, "empty": []},
        {"trainer": {"callbacks": [{"class_path": "B"}], "rounds": 3}, "empty": None},
    ]
    assert differing(runs) == [
        ("trainer.callbacks.0.class_path", ["A", "B"]),
        ("trainer.callbacks.0.fine", ["true", "-"]),
        ("empty", ["[]", "null"]),
    ]


def test_a_class_that_has_moved_since_is_the_same() -> None:
    before = {"trainer": {"callbacks": [{"class_path": "fedhq_lightning.reporting.progress.ProgressDisplay"}]}}
    now = {"trainer": {"callbacks": [{"class_path": "fedhq_lightning.report.progress.ProgressDisplay"}]}}
    assert changes(before, now) == []
    assert changes(now, before) != []


def test_a_first_argument_that_is_not_set_changes_nothing() -> None:
    before, now = {"a": {"class_path": "X"}}, {"a": {"class_path": "X", "init_args": {"y": None}}}
    assert changes(before, now) == []
    assert [str(each) for each in changes(before, {"a": {"class_path": "X", "init_args": {"y": 1}}})] == [
        "a.init_args.y was None, is now 1"
    ]
