import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.experiments.search_space import make_space
from fedhq_lightning.experiments.study_section import parse_section

RECIPE = {
    "model": {"class_path": "Net", "init_args": {"lr": 0.1, "sizes": [16], "scale": 1.0, "depth": 2}},
    "data": {"class_path": "Data"},
    "trainer": {"scheme": "w4a8", "lanes": None, "monitor": None, "seed": 0},
}


def only(given, key="model.lr"):
    [parameter] = make_space(RECIPE, {key: given}).parameters
    return parameter


def test_ranges():
    log = only({"low": "1e-3", "high": 1, "log": True})
    assert (log.distribution.low, log.distribution.high, log.distribution.log) == (0.001, 1.0, True)
    whole = only({"low": 1, "high": 9, "step": 2}, "model.depth")
    assert type(whole.distribution).__name__ == "IntDistribution"
    assert whole.candidates() == [1, 9]
    # The recipe's own value says that it is no whole number, however the ends are written.
    assert type(only({"low": 1, "high": 3}, "model.scale").distribution).__name__ == "FloatDistribution"


def test_choices_may_be_anything():
    parameter = only([[16], [32, 32], None], "model.sizes")
    assert [parameter.value(label) for label in parameter.distribution.choices] == [[16], [32, 32], None]
    assert only(["1e-3", 0.1]).candidates() == [0.001, 0.1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"low": 1}, "missing is high"),
        ({"low": 2, "high": 1}, "low 2 must be less than high 1"),
        ({"low": 0, "high": 1, "log": True}, "low must be more than 0"),
        ({"low": 0, "high": 1, "steps": 3}, "did you mean 'step'"),
        ({"low": "small", "high": 1}, "low 'small' is not a number"),
        ({"low": 0, "high": 1, "step": 2}, "step 2 must be"),
        ([], "give a list of choices, or a range"),
        ([0.1, 0.1], "the choice 0.1 is there twice"),
        (0.1, "give a list of choices"),
    ],
)
def test_refuses(given, words):
    with pytest.raises(ConfigurationError, match=f"^search: model.lr: .*{words}"):
        only(given)


def test_refuses_keys():
    with pytest.raises(ConfigurationError, match=r"trainer.monitor cannot be searched: trials would not be comparable"):
        only(["a", "b"], "trainer.monitor")
    with pytest.raises(ConfigurationError, match=r"model.init_args.lr and model.lr name the same place"):
        make_space(RECIPE, {"model.lr": [1, 2], "model.init_args.lr": [1, 2]})
    with pytest.raises(ConfigurationError, match=r"model.lr and model name the same place, or one is a part"):
        make_space(RECIPE, {"model": [{"class_path": "A"}], "model.lr": [1, 2]})


def test_the_recipe_itself_is_a_trial_where_the_search_holds_it():
    search = {"model.lr": {"low": 0.01, "high": 0.5}, "model.sizes": [[16], [32]], "trainer.scheme": ["w4a8", "w3a8"]}
    assert make_space(RECIPE, search).own_values() == {"model.lr": 0.1, "model.sizes": "[16]", "trainer.scheme": "w4a8"}
    assert make_space(RECIPE, search | {"trainer.lanes.qat_kernel": ["int8", "fake"]}).own_values() is None
    assert make_space(RECIPE, search | {"model.lr": {"low": 0.2, "high": 0.5}}).own_values() is None


def test_variations_change_one_key_of_the_recipe():
    space = make_space(RECIPE, {"model.lr": [0.1, 0.2], "trainer.lanes.qat_kernel": ["int8", "fake"]})
    found = [
        (key, content["model"]["init_args"]["lr"], content["trainer"]["lanes"]["qat_kernel"])
        for key, _, content in space.variations()
    ]
    assert found == [("model.lr", 0.2, "int8"), ("trainer.lanes.qat_kernel", 0.1, "fake")]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"serach": {}}, "unknown key 'serach'.*did you mean 'search'"),
        ({"model.lr": [1]}, "recipe keys belong under search"),
        ({"trials": 0}, "trials 0 must be"),
        ({"sampler": "tpee"}, "sampler 'tpee'; allowed are tpe, nsgaii, random.*did you mean 'tpe'"),
        ({"sampler": {"name": "tpe", "startup": 3}}, "sampler tpe: .*startup"),
        ({"sampler": {"name": "tpe", "seed": 3}}, "its seed comes from the study's"),
        ({"pruning": {"percentil": 3}}, "did you mean 'percentile'"),
        ({"pruning": {"percentile": 101}}, "percentile 101 must be from 0 to 100"),
        ({"pruning": {"startup_trials": 0}}, "startup_trials 0 must be a whole number, 1 or more"),
        ({"pruning": "median"}, "pruning 'median'; allowed are"),
        ([], "give a mapping"),
    ],
)
def test_sections(section, words):
    with pytest.raises(ConfigurationError, match=words):
        parse_section(section)


def test_samplers_are_seeded():
    import optuna

    section = parse_section({"sampler": {"name": "nsgaii", "population_size": 8}, "pruning": True, "trials": 3}, 5)
    assert isinstance(section.make_sampler(1), optuna.samplers.NSGAIISampler)
    assert section.trials == 5
    assert section.pruning.percentile == 50

    def first(seed):
        study = optuna.create_study(sampler=parse_section({}).make_sampler(seed))
        return study.ask().suggest_float("x", 0, 1)

    assert first(2**40) == first(2**40) != first(1)


def test_short_names_tell_the_keys_apart():
    recipe = RECIPE | {"data": {"class_path": "Data", "init_args": {"seed": 0}}}
    space = make_space(recipe, {"model.lr": [1, 2], "trainer.seed": [1, 2], "data.seed": [1, 2]})
    assert space.short_names() == ["lr", "trainer.seed", "data.seed"]
