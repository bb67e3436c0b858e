"""Copies of modules as they are found in the middle of training."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from fedhq_lightning.drop_in.copies import ForwardRecorder, as_float, converted_copy, copy_of_batch, plain_copy
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.quantize import QuantScheme, convert, prepare

from ..small_script import NUM_FEATURES, ScriptModule, is_plain, same_weights

X = torch.randn(5, NUM_FEATURES, generator=torch.Generator().manual_seed(0))


def test_plain_copy_of_a_lane() -> None:
    module = prepare(ScriptModule(), "qat", QuantScheme("w4a8"))
    copied = plain_copy(module)
    assert is_plain(copied)
    assert not is_plain(module)
    assert same_weights(copied, module)
    assert copied.net[0].weight is not module.net[0].weight


def test_tensors_with_a_graph_are_copied_without_it() -> None:
    module: Any = ScriptModule()
    loss = module(X).sum()
    module.losses = [loss, {"nested": loss * 2}]
    module._last = loss
    module.register_buffer("hidden", None)
    module.hidden = loss * 3
    with pytest.warns(FutureWarning):
        module.normed = nn.utils.weight_norm(nn.Linear(2, 2))
    copied: Any = plain_copy(module)
    assert copied._last.grad_fn is copied.hidden.grad_fn is copied.normed.weight.grad_fn is None
    assert copied.losses[0].item() == loss.item()
    assert copied.losses[1]["nested"].grad_fn is None
    assert module.losses[0] is loss


def test_trainer_is_not_copied() -> None:
    module = ScriptModule()
    module._trainer = trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    assert plain_copy(module)._trainer is None
    assert module.trainer is trainer


@pytest.mark.parametrize("how", ["torch.compile", "module.compile", "layer.compile"])
def test_compiled_modules_are_copied_uncompiled(how: str) -> None:
    """A copy that still called the original's compiled code would show in no shape, only in its values."""
    from lightning.pytorch.utilities.compile import from_compiled

    module = ScriptModule().eval()
    if how == "torch.compile":
        from_compiled(torch.compile(module, backend="eager"))
    else:
        (module if how == "module.compile" else module.net).compile(backend="eager")
    expected = convert(ScriptModule().eval(), QuantScheme("w2a8"))
    with torch.no_grad():
        assert torch.equal(converted_copy(module, QuantScheme("w2a8"))(X), expected(X))


def test_metrics_are_reset() -> None:
    module: Any = ScriptModule()
    module.accuracy = MulticlassAccuracy(3)
    module.accuracy.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    copied: Any = converted_copy(module, QuantScheme("w4a8"))
    assert not copied.accuracy.update_called
    assert module.accuracy.update_called


def test_half_precision_is_deployed_in_single() -> None:
    converted = converted_copy(ScriptModule().to(torch.bfloat16), QuantScheme("w4a8"))
    assert converted(X).dtype == torch.float32


def test_what_cannot_be_copied_is_named() -> None:
    module: Any = ScriptModule()
    module.stream = (number for number in range(3))
    with pytest.raises(ConfigurationError, match=r"ScriptModule cannot be copied.*generator"):
        plain_copy(module)


class TestForwardRecorder:
    def test_remembers_copies_of_the_first_call(self) -> None:
        module, x = ScriptModule(), X.clone()
        recorder = ForwardRecorder(module)
        with torch.inference_mode():
            module(x)
        x.zero_()
        module(x)
        assert recorder.arguments is not None
        assert torch.equal(recorder.arguments[0], X)
        assert not recorder.arguments[0].is_inference()
        assert not module._forward_pre_hooks

    def test_calls_by_keyword_show_nothing(self) -> None:
        module = nn.Linear(2, 2)
        recorder = ForwardRecorder(module)
        module(input=torch.ones(1, 2))
        assert recorder.arguments is None


def test_batches_are_cloned_and_cast_in_depth() -> None:
    batch = {"x": [torch.ones(2, dtype=torch.float64)], "y": (torch.ones(2, dtype=torch.int64), "name")}
    copied = copy_of_batch(batch)
    batch["x"][0].zero_()  # type: ignore[union-attr]
    assert copied["x"][0].sum() == 2
    cast = as_float(copied)
    assert cast["x"][0].dtype == torch.float32
    assert cast["y"][0].dtype == torch.int64
    assert cast["y"][1] == "name"
