import argparse

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe.errors import check_all_used, check_class_nodes, explain, unknown_key

KEYS = ("model", "data", "trainer.max_rounds", "trainer.seed")


def argument_error(text: str) -> argparse.ArgumentError:
    return argparse.ArgumentError(None, text)


def test_the_branch_that_got_furthest_is_told():
    """A Union reports on every type that it allows; only one of them was meant."""
    text = """\
Parser key "trainer.callbacks":
  Does not validate against any of the Union subtypes
  Subtypes: [Sequence[A | B], <class 'A'>, <class 'NoneType'>]
  Errors:
    - Does not validate against any of the Union subtypes
      Subtypes: [<class 'A'>, <class 'B'>]
      Errors:
        - Import path p.C does not correspond to a subclass of A
        - Problem with given class_path 'p.C':
            Parser key "share":
              Does not validate against any of the Union subtypes
              Subtypes: [<class 'int'>, <class 'float'>]
              Errors:
                - Expected a <class 'int'>
                - Expected a <class 'float'>
              Given value type: <class 'str'>
              Given value: half
      Given value type: <class 'dict'>
      Given value: {'class_path': 'p.C', 'init_args': {'share': 'half'}}
    - Expected a <class 'NoneType'>
  Given value type: <class 'list'>
  Given value: [{'class_path': 'p.C', 'init_args': {'share': 'half'}}]"""
    assert explain(argument_error(text), KEYS) == "trainer.callbacks.share 'half': must be a whole number or a number"


def test_long_values_are_cut():
    text = f"Parser key \"trainer.seed\":\n  Expected a <class 'int'>. Got value: {'x' * 500}"
    assert len(explain(argument_error(text), KEYS)) < 150


def test_what_is_not_understood_is_passed_on():
    assert explain(argument_error('Parser key "trainer.seed":\n  New words'), KEYS) == "trainer.seed: New words"
    assert explain(argument_error("New words"), KEYS) == "New words"
    assert explain(ImportError("no such thing"), KEYS) == "no such thing"


def test_a_module_of_an_extra_comes_with_what_installs_it():
    """Partitioners are named in recipes, and the base installation has none."""
    text = """Parser key "data.partitioner":\n  No module named 'flwr_datasets.partitioner'"""
    told = explain(argument_error(text), KEYS)
    assert told.endswith("; pip install 'fedhq-lightning[data]' brings it"), told
    assert "brings it" not in explain(argument_error(text.replace("flwr_datasets", "mine")), KEYS)


def test_our_own_errors_go_before_jsonargparse_s():
    error = argument_error("Does not validate")
    error.__cause__ = ConfigurationError("scheme 'w9': no")
    assert explain(error, KEYS) == "scheme 'w9': no"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("trainer.max_round", "unknown key 'trainer.max_round'; did you mean 'trainer.max_rounds'?"),
        ("trainer.zzz", "unknown key 'trainer.zzz'; allowed are trainer.max_rounds, trainer.seed"),
        ("zzz", "unknown key 'zzz'; allowed are model, data, trainer"),
        ("trainr.seed", "unknown key 'trainr.seed'; did you mean 'trainer.seed'?"),
    ],
)
def test_unknown_key(key, expected):
    assert unknown_key(key, KEYS) == expected


def test_keys_beside_class_path_are_found_at_any_depth():
    node = {"class_path": "p.C", "init_args": {"parts": [{"class_path": "p.D", "size": 3}]}}
    with pytest.raises(ConfigurationError, match=r"^model.init_args.parts: unknown key 'size' beside class_path"):
        check_class_nodes({"model": node})
    check_class_nodes({"model": {"class_path": "p.C", "init_args": {"size": 3}}, "trainer": {"size": 3}})


def test_what_was_left_out_is_found():
    used = {"trainer": {"seed": 1, "scheme": {"scheme": "w4"}}}
    check_all_used({"trainer": {"scheme": {"scheme": "w4"}}}, used)
    check_all_used({"model": {"class_path": "p.C", "init_args": {}}}, {"model": {"class_path": "p.C"}})
    with pytest.raises(ConfigurationError, match=r"^unknown key 'trainer.sede'; did you mean 'trainer.seed'\?$"):
        check_all_used({"trainer": {"sede": {}}}, used)
