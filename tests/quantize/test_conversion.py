import copy
from collections.abc import Callable
from functools import partial

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models import LeNet5, ResNet20, ViT
from fedhq_lightning.quantize.conversion import convert
from fedhq_lightning.quantize.integer_layers import IntegerConv2d, IntegerLayer, IntegerLinear
from fedhq_lightning.quantize.lane_options import LaneOptions
from fedhq_lightning.quantize.lanes import prepare
from fedhq_lightning.quantize.scheme import QuantScheme
from fedhq_lightning.types import MODES, Mode


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.middle = nn.Linear(144, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.convolution(x)))
        return self.head(torch.relu(self.middle(x.view(-1, self.middle.in_features))))


@pytest.fixture
def module() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


def test_layers_become_integer_layers_of_the_scheme(module: Classifier) -> None:
    converted = convert(module, QuantScheme("w3a4"))
    assert isinstance(converted, Classifier)
    assert isinstance(converted.convolution, IntegerConv2d)
    assert isinstance(converted.middle, IntegerLinear)
    layers = [converted.convolution, converted.middle, converted.head]
    assert [str(layer.scheme) for layer in layers] == ["w8a8", "w3a4", "w8a8"]
    assert not any(part.training for part in converted.modules())
    assert converted.middle.in_features == 144


def test_the_module_stays_as_it_was(module: Classifier) -> None:
    state = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.randn(2, 1, 8, 8)
    before = module(x)
    convert(module, QuantScheme())
    assert module.training
    assert type(module.middle) is nn.Linear
    assert torch.equal(module(x), before)
    # The two forward passes moved BatchNorm's statistics; the weights must not have moved.
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items() if "norm" not in name)


def test_nothing_is_shared_with_the_module(module: Classifier) -> None:
    converted = convert(module, QuantScheme())
    own = {value.untyped_storage().data_ptr() for value in module.state_dict().values()}
    assert not own & {value.untyped_storage().data_ptr() for value in converted.state_dict().values()}


def test_the_trainer_is_not_copied(module: Classifier) -> None:
    class Trainer:
        def __deepcopy__(self, memo: dict) -> "Trainer":
            raise AssertionError("copied")

    module._trainer = Trainer()  # type: ignore[assignment]  # stands for whatever trains the module
    converted = convert(module, QuantScheme())
    assert converted._trainer is None
    assert isinstance(module._trainer, Trainer)


@pytest.mark.parametrize("mode", MODES)
def test_the_result_does_not_depend_on_the_lane(module: Classifier, mode: Mode) -> None:
    scheme, x = QuantScheme("w3a8-g16"), torch.randn(4, 1, 8, 8)
    expected = convert(module, scheme)(x)
    prepare(module, mode, scheme)
    assert torch.equal(convert(module, scheme)(x), expected)


def test_close_to_the_float_module_at_eight_bits(module: Classifier) -> None:
    x = torch.randn(64, 1, 8, 8)
    float_output, output = module.eval()(x), convert(module, QuantScheme("w8a8"))(x)
    assert (output - float_output).norm() < 0.02 * float_output.norm()


@pytest.mark.parametrize(
    "model",
    [partial(ResNet20, width=8), partial(ResNet20, width=8, norm="batch"), LeNet5, partial(ViT, depth=1)],
    ids=["group norm", "batch norm", "LeNet-5", "ViT"],
)
def test_a_whole_model_has_the_bits_of_its_qat_lane(model: Callable[[], L.LightningModule]) -> None:
    """Memory formats too: what lies between the layers adds up in their order."""
    torch.manual_seed(0)
    module, scheme = model(), QuantScheme("w4a8")
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    prepared = prepare(copy.deepcopy(module), "qat", scheme, LaneOptions(qat_kernel="int8")).eval()
    with torch.no_grad():
        assert torch.equal(convert(module, scheme)(x), prepared(x))


def test_samples_do_not_depend_on_the_batch(module: Classifier) -> None:
    converted, x = convert(module, QuantScheme("w4")), torch.randn(20, 1, 8, 8)
    whole = converted.convolution(x)
    assert torch.equal(converted.convolution(x[3:4]), whole[3:4])


def test_overridden_layers_stay_float(module: Classifier) -> None:
    converted = convert(module, QuantScheme(overrides={"middle": "fp"}))
    assert type(converted.middle) is nn.Linear
    assert isinstance(converted.head, IntegerLinear)


def test_hooks_and_second_names_stay() -> None:
    calls = []
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda *arguments: calls.append(1))
    converted = convert(nn.ModuleList([layer, nn.Linear(4, 4), layer]), QuantScheme())
    assert converted[0] is converted[2]
    converted[2](torch.randn(1, 4))
    assert calls == [1]


def test_a_bare_layer() -> None:
    layer = nn.Linear(4, 3)
    assert isinstance(convert(layer, QuantScheme()), IntegerLinear)
    assert type(layer) is nn.Linear


def test_nothing_to_quantize() -> None:
    with pytest.raises(ConfigurationError, match="nothing to quantize"):
        convert(nn.ReLU(), QuantScheme())


def test_transformer_encoders_use_their_integer_layers() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        converted = convert(encoder, QuantScheme("w2a2", edge_bits=None))
        output, plain = converted(x), encoder.eval()(x)
    assert sum(isinstance(part, IntegerLayer) for part in converted.modules()) == 4
    assert (output - plain).norm() > 0.05 * plain.norm()
