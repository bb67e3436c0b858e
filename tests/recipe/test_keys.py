import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.recipe.keys import locate, value_at, with_values

RECIPE = {
    "model": {"class_path": "Net", "init_args": {"lr": 0.1, "sizes": [16]}},
    "data": {"class_path": "Data", "init_args": {"partitioner": {"class_path": "P", "init_args": {"alpha": 1.0}}}},
    "trainer": {
        "scheme": "w4a8",
        "lanes": None,
        "callbacks": [
            {"class_path": "fedhq.HybridAllocator", "init_args": {"fine": True, "boundary": None, "window": 2}},
            {"class_path": "fedhq.EarlyStopping", "init_args": {"patience": 5}},
            {"class_path": "fedhq.EarlyStopping", "init_args": {"patience": 9}},
        ],
    },
}
CALLBACK = ("trainer", "callbacks", 0, "init_args")


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("model.lr", ("model", "init_args", "lr")),
        ("model.init_args.lr", ("model", "init_args", "lr")),
        ("model", ("model",)),
        ("data.partitioner.alpha", ("data", "init_args", "partitioner", "init_args", "alpha")),
        ("trainer.lanes.qat_kernel", ("trainer", "lanes", "qat_kernel")),
        ("trainer.callbacks.fine", (*CALLBACK, "fine")),
        ("trainer.callbacks.HybridAllocator.fine", (*CALLBACK, "fine")),
        ("trainer.callbacks.0.init_args.boundary.slack", (*CALLBACK, "boundary", "slack")),
        ("trainer.callbacks.boundary.slack", (*CALLBACK, "boundary", "slack")),
        ("trainer.callbacks.2.patience", ("trainer", "callbacks", 2, "init_args", "patience")),
    ],
)
def test_places(key, place):
    assert locate(RECIPE, key) == place


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.lrr", "unknown key 'model.lrr': model has lr, sizes; did you mean 'lr'?"),
        ("trainer.sceme", "did you mean 'scheme'?"),
        ("trainr.scheme", "a recipe has model, data, trainer; did you mean 'trainer'?"),
        ("trainer.callbacks.HybridAlocator.fine", "did you mean 'HybridAllocator'?"),
        ("trainer.callbacks.3.fine", "trainer.callbacks has 3 entries, from 0"),
        ("trainer.callbacks.patience", "2 entries of trainer.callbacks fit 'patience'; .* such as trainer.callbacks.1"),
        ("trainer.scheme.edge_bits", "trainer.scheme is 'w4a8', which has no parts"),
    ],
)
def test_refuses(key, words):
    with pytest.raises(ConfigurationError, match=words.replace("?", r"\?").replace("[", r"\[")):
        locate(RECIPE, key)


@pytest.mark.parametrize("init_args", [[], 0, False, ""])
def test_refuses_arguments_that_are_no_mapping(init_args):
    recipe = RECIPE | {"model": {"class_path": "m.Model", "init_args": init_args}}
    with pytest.raises(ConfigurationError, match=r"unknown key 'model.lr': .* which has no parts"):
        locate(recipe, "model.lr", is_resolved=False)


@pytest.mark.parametrize("init_args", [[], 5, True, "fine", None])
def test_of_a_list_only_mappings_have_arguments(init_args):
    recipe = {"callbacks": [{"class_path": "m.HybridAllocator", "init_args": init_args}]}
    with pytest.raises(ConfigurationError, match="callbacks has HybridAllocator"):
        locate(recipe, "callbacks.fine")


def test_values_are_put_in_a_copy():
    slack, share = (locate(RECIPE, f"trainer.callbacks.boundary.{name}") for name in ("slack", "share"))
    changed = with_values(RECIPE, {slack: 0.5, share: 0.2, ("model", "init_args", "lr"): 0.3})
    assert value_at(changed, (*CALLBACK, "boundary")) == {"slack": 0.5, "share": 0.2}
    assert value_at(changed, ("model", "init_args", "lr")) == 0.3
    assert value_at(RECIPE, (*CALLBACK, "boundary")) is None
    assert RECIPE["model"]["init_args"]["lr"] == 0.1
