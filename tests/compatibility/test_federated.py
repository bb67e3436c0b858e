"""Modules in the styles found in the wild train in a federation as they are."""

import pytest
from torch.nn.parameter import is_lazy

from . import styles_of_layers, styles_of_training  # noqa: F401  # they enter their styles
from .runs import LEFT_OUT, assert_ran, run, seeded, traces
from .styles import STYLES

pytestmark = LEFT_OUT
OF_LAYERS = [name for name, style in STYLES.items() if style.is_about_layers]


def train(name: str, exports: bool) -> None:
    style = STYLES[name]
    module = seeded(style.module)
    before = traces(module)
    start = {key: value.clone() for key, value in module.state_dict().items() if not is_lazy(value)}
    there = run(module, style.data())
    assert_ran(there, module, before, exports, style.builds)
    after = module.state_dict()
    assert any(not value.equal(after[key]) for key, value in start.items() if key in after) or style.builds


@pytest.mark.parametrize("name", OF_LAYERS)
@pytest.mark.usefixtures("no_report")
def test_layers_are_trained_and_deployed(name: str) -> None:
    train(name, STYLES[name].exports)


@pytest.mark.parametrize("name", [name for name in STYLES if name not in OF_LAYERS])
@pytest.mark.usefixtures("no_program")
def test_trains_unmodified(name: str) -> None:
    train(name, exports=False)


@pytest.mark.parametrize("name", ["batches are dicts", "forward(**batch), as Hugging Face models"])
def test_a_whole_run(name: str) -> None:
    """With the program, its measured speed and the report."""
    train(name, STYLES[name].exports)
