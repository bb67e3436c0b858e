from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models import MLP, CharTransformer, add_lora
from fedhq_lightning.support import extras

SMALL: dict[str, Any] = {"num_classes": 11, "length": 6, "width": 8, "depth": 1, "num_heads": 2}


def batch() -> torch.Tensor:
    return torch.arange(18).view(3, 6) % 11


def saved(model: nn.Module, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), file)
    return file


def test_sees_nothing_of_what_is_to_come() -> None:
    model, characters = CharTransformer(**SMALL), batch()
    before = model(characters)
    assert before.shape == (3, 11, 6)
    characters[:, 4:] = 7
    after = model(characters)
    torch.testing.assert_close(before[..., :4], after[..., :4])
    assert not torch.equal(before[..., 4:], after[..., 4:])
    torch.testing.assert_close(model(characters[:, :4]), after[..., :4])  # shorter windows too


def test_every_parameter_learns() -> None:
    model = CharTransformer(**SMALL)
    model.loss(model(batch()), batch().roll(-1, 1)).backward()
    assert not [name for name, parameter in model.named_parameters() if not parameter.grad.any()]


def test_exported_with_any_batch_size() -> None:
    model = CharTransformer(**SMALL).eval()
    program = torch.export.export(model, (batch()[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for characters in (batch(), batch()[:1]):
        torch.testing.assert_close(program(characters), model(characters), rtol=1e-5, atol=1e-5)


class TestBase:
    def test_is_taken_once_the_model_is_built(self, tmp_path: Path) -> None:
        base = CharTransformer(**SMALL)
        file = saved(base, tmp_path / "runs" / "20260101-000000-b" / "model" / "weights.safetensors")
        saved(CharTransformer(**SMALL), tmp_path / "runs" / "20250101-000000-a" / "model" / "weights.safetensors")
        for given in (file, file.parent, file.parents[1], tmp_path / "runs"):
            model = CharTransformer(**SMALL, base=given)
            model.configure_model()
            assert torch.equal(model(batch()), base(batch()))
        with torch.no_grad():
            model.norm.weight.zero_()
        model.configure_model()
        assert not model.norm.weight.any(), "what has been trained since is kept"

    def test_what_cannot_be_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"model\.base '.*nowhere': no weights\.safetensors there"):
            CharTransformer(**SMALL, base=tmp_path / "nowhere").configure_model()
        file = saved(CharTransformer(**SMALL | {"width": 4}), tmp_path / "weights.safetensors")
        with pytest.raises(ConfigurationError, match=r"blocks\.0\.mlp\.0\.bias is \(16,\) there and \(32,\) here"):
            CharTransformer(**SMALL, base=file).configure_model()
        with pytest.raises(ConfigurationError, match=r"bias is \(2,\) there and missing here"):
            CharTransformer(**SMALL, base=saved(nn.Linear(2, 2), file)).configure_model()
        with pytest.raises(ConfigurationError, match="num_heads 3: must divide width 8"):
            CharTransformer(**SMALL | {"num_heads": 3})


class TestLora:
    def test_adds_nothing_at_first_and_trains_alone(self) -> None:
        torch.manual_seed(0)
        model = CharTransformer(**SMALL, lora_rank=2, lora_layers=["qkv", "mlp.2"])
        before = model(batch())
        whole = {name: value.clone() for name, value in model.state_dict().items()}
        model.configure_model()
        assert torch.equal(model(batch()), before)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained == [
            f"blocks.0.{layer}.lora_{side}.default.weight" for layer in ("qkv", "mlp.2") for side in "AB"
        ]
        kept = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
        assert all(torch.equal(kept[name], value) for name, value in whole.items())

    def test_is_the_papers_equation(self) -> None:
        layer = nn.Sequential(nn.Linear(5, 4))
        x = torch.randn(3, 5)
        plain = layer(x)
        add_lora(layer, ["0"], rank=2, alpha=6.0)
        down, up = torch.randn(2, 5), torch.randn(4, 2)
        with torch.no_grad():
            layer[0].lora_A["default"].weight.copy_(down)
            layer[0].lora_B["default"].weight.copy_(up)
        torch.testing.assert_close(layer(x), plain + 6.0 / 2 * x @ down.T @ up.T)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"layers": ["layers.9"]}, r"no linear layer's name ends in 'layers\.9'; there are layers\.1, layers\.3"),
            ({"layers": []}, r"LoRA layers \[\]: give a list of names"),
            ({"layers": "qkv"}, "LoRA layers 'qkv': give a list of names"),
            ({"layers": ["layers.1"], "rank": 0}, "LoRA rank 0: must be 1 or more"),
            ({"layers": ["layers.1"], "alpha": 0.0}, "LoRA alpha 0.0: must be above 0"),
            ({"layers": ["layers.1"], "dropout": 1.0}, "LoRA dropout 1.0: must be 0 or more, and below 1"),
        ],
        ids=lambda each: str(each) if isinstance(each, dict) else "",
    )
    def test_what_cannot_be_is_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            add_lora(MLP(), **settings)

    def test_the_missing_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(extras, "is_installed", lambda name: name != "peft")
        with pytest.raises(ConfigurationError, match=r"LoRA takes peft: pip install 'fedhq-lightning\[lora\]'"):
            CharTransformer(**SMALL, lora_rank=2).configure_model()
