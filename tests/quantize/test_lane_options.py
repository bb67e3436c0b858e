import re

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize.lane_options import LaneOptions
from fedhq_lightning.quantize.lanes import PtqTrainingConfig, QatTrainingConfig
from fedhq_lightning.quantize.scheme import LayerScheme

NAMES = ["stem", "blocks.0.attention", "blocks.0.mlp", "blocks.1.attention", "head"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"qat_kernel": "int4"}, "qat_kernel 'int4': allowed are auto, int8, fake; did you mean 'int8'?"),
        ({"qat_backward": "fp32"}, "qat_backward 'fp32': allowed are int8, bf16"),
        ({"qat_kernel": "fp"}, "qat_kernel 'fp': allowed are auto, int8, fake"),
        ({"layer_kernels": {"qta": {}}}, "layer_kernels 'qta': kernels are chosen for ptq and qat; did you mean"),
        ({"layer_kernels": {"fp": {"*": "int8"}}}, "layer_kernels 'fp': kernels are chosen for ptq and qat"),
        ({"layer_kernels": {"ptq": {"head": "fake"}}}, "layer_kernels ptq 'head' 'fake': allowed are auto, int8, fp"),
        ({"layer_kernels": {"qat": {"*": "fp"}}}, "layer_kernels qat '*' 'fp': allowed are auto, int8, fake"),
        ({"layer_kernels": {"qat": {"*": None}}}, "layer_kernels qat '*' None: allowed are auto, int8, fake"),
    ],
)
def test_refusals_name_what_is_allowed(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        LaneOptions(**arguments)


def test_configs_refuse_other_kernels() -> None:
    with pytest.raises(ConfigurationError, match="kernel 'fake': allowed are auto, int8, fp"):
        PtqTrainingConfig("fake")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ConfigurationError, match="kernel 'fp': allowed are auto, int8, fake"):
        QatTrainingConfig(LayerScheme(4, 8), "fp")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(ConfigurationError, match="qat_backward 'int4': allowed are int8, bf16; did you mean 'int8'"):
        QatTrainingConfig(LayerScheme(4, 8), qat_backward="int4")  # type: ignore[arg-type]  # the mistake under test


def test_the_kernel_of_every_layer_by_default() -> None:
    assert LaneOptions().kernels_of("ptq", NAMES) == dict.fromkeys(NAMES, "auto")
    assert LaneOptions(qat_kernel="fake").kernels_of("qat", NAMES) == dict.fromkeys(NAMES, "fake")
    assert LaneOptions(qat_kernel="fake").kernels_of("ptq", NAMES) == dict.fromkeys(NAMES, "auto")


def test_the_first_pattern_that_matches_wins() -> None:
    options = LaneOptions(
        qat_kernel="fake", layer_kernels={"ptq": {"blocks.0.*": "int8", "blocks.*": "fp"}, "qat": {"*.mlp": "auto"}}
    )
    assert list(options.kernels_of("ptq", NAMES).items()) == list(
        zip(NAMES, ["auto", "int8", "int8", "fp", "auto"], strict=True)
    )
    assert list(options.kernels_of("qat", NAMES).values()) == ["fake", "fake", "auto", "fake", "fake"]


def test_a_pattern_that_matches_nothing() -> None:
    options = LaneOptions(layer_kernels={"ptq": {"haed": "int8"}})
    with pytest.raises(ConfigurationError, match=r"ptq 'haed' matches no layer; quantized layers are stem, blocks\.0"):
        options.kernels_of("ptq", NAMES)
    with pytest.raises(ConfigurationError, match="did you mean 'head'"):
        options.kernels_of("ptq", NAMES)
    assert options.kernels_of("qat", NAMES)["head"] == "auto"  # not its mode


def test_long_lists_are_cut() -> None:
    with pytest.raises(ConfigurationError, match=r"layer7, \.\.\."):
        LaneOptions(layer_kernels={"qat": {"x": "int8"}}).kernels_of("qat", [f"layer{i}" for i in range(30)])
