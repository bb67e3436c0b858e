import copy
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedhq_lightning import models
from fedhq_lightning.data import Digits
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.models import MLP, Classifier, LeNet5, MobileNetV2, ResNet20, ViT

SHAPES = [
    pytest.param(LeNet5, {}, (1, 28, 28), id="LeNet5"),
    pytest.param(LeNet5, {"in_channels": 3, "image_size": 32, "num_classes": 7}, (3, 32, 32), id="LeNet5-colour"),
    pytest.param(LeNet5, {"image_size": 12}, (1, 12, 12), id="LeNet5-smallest"),
    pytest.param(MLP, {}, (1, 28, 28), id="MLP"),
    pytest.param(MLP, {"image_size": 8, "hidden_sizes": []}, (1, 8, 8), id="MLP-linear"),
    # With fewer than 8 channels, channels last, the backward of a strided 1 x 1 convolution ends the process in torch
    # 2.13 on CPUs without AVX-512.
    pytest.param(ResNet20, {"width": 8}, (1, 28, 28), id="ResNet20"),
    pytest.param(ResNet20, {"in_channels": 3, "width": 9, "num_classes": 100}, (3, 32, 32), id="ResNet20-odd"),
    pytest.param(ResNet20, {"width": 8, "norm": "batch"}, (1, 28, 28), id="ResNet20-batch"),
    pytest.param(MobileNetV2, {"width": 4}, (1, 28, 28), id="MobileNetV2"),
    pytest.param(MobileNetV2, {"in_channels": 3, "width": 8, "norm": "group"}, (3, 32, 32), id="MobileNetV2-group"),
    pytest.param(ViT, {"depth": 1}, (1, 28, 28), id="ViT"),
    pytest.param(ViT, {"in_channels": 3, "image_size": 32, "patch_size": 4, "depth": 1}, (3, 32, 32), id="ViT-colour"),
]


@pytest.mark.parametrize(("model_class", "settings", "shape"), SHAPES)
class TestEveryModel:
    def test_logits(self, model_class: type[Classifier], settings: dict[str, Any], shape: tuple[int, ...]) -> None:
        logits = model_class(**settings)(torch.randn(3, *shape))
        assert logits.shape == (3, settings.get("num_classes", 10))

    def test_every_parameter_learns(
        self, model_class: type[Classifier], settings: dict[str, Any], shape: tuple[int, ...]
    ) -> None:
        torch.manual_seed(0)
        model = model_class(**settings)
        nn.functional.cross_entropy(model(torch.randn(4, *shape)), torch.arange(4)).backward()
        silent = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
        assert not silent

    def test_the_fused_optimizer_is_the_plain_one_but_for_rounding(
        self, model_class: type[Classifier], settings: dict[str, Any], shape: tuple[int, ...]
    ) -> None:
        torch.manual_seed(0)
        fused_model = model_class(**settings)
        plain_model = copy.deepcopy(fused_model)
        optimizer = fused_model.configure_optimizers()
        assert optimizer.defaults["fused"]
        known = {
            name: value for name, value in optimizer.defaults.items() if name in ("lr", "momentum", "weight_decay")
        }
        plain = type(optimizer)(plain_model.parameters(), foreach=False, **known)
        gradients = [torch.randn_like(each) for each in fused_model.parameters()]
        for _ in range(3):
            for model, chosen in ((fused_model, optimizer), (plain_model, plain)):
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.grad = gradient.clone()
                chosen.step()
        for ours, theirs in zip(fused_model.parameters(), plain_model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_exported_with_any_batch_size(
        self, model_class: type[Classifier], settings: dict[str, Any], shape: tuple[int, ...]
    ) -> None:
        model = model_class(**settings).eval()
        program = torch.export.export(
            model, (torch.randn(2, *shape),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        ).module()
        for batch_size in (1, 5):
            images = torch.randn(batch_size, *shape)
            torch.testing.assert_close(program(images), model(images), rtol=1e-5, atol=1e-5)

    def test_only_known_layers_hold_matrices(
        self, model_class: type[Classifier], settings: dict[str, Any], shape: tuple[int, ...]
    ) -> None:
        model = model_class(**settings)
        quantizable = {
            id(module.weight) for module in model.modules() if type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d)
        }
        others = [
            name
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1 and id(parameter) not in quantizable
        ]
        assert others == (["positions"] if model_class is ViT else [])


def test_lenet5_has_the_parameters_of_the_paper() -> None:
    assert sum(parameter.numel() for parameter in LeNet5().parameters()) == 61_706


def test_resnet20_has_twenty_layers() -> None:
    model = ResNet20(in_channels=3, width=16)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == 20
    # He et al. give 0.27 million.
    assert sum(model.get_submodule(name).weight.numel() for name in layers) == 268_336


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LeNet5(image_size=8), "LeNet5 image_size 8: must be 12 or more; use MLP"),
        (lambda: ResNet20(width=0), "ResNet20 width 0"),
        (lambda: ResNet20(norm="layer"), "norm 'layer': must be one of group, batch"),
        (lambda: MobileNetV2(expansion=0), "MobileNetV2 expansion 0"),
        (lambda: ViT(patch_size=5), "ViT patch_size 5: must divide image_size 28"),
        (lambda: ViT(num_heads=5), "ViT num_heads 5: must divide width 64"),
    ],
)
def test_impossible_shapes(build: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build()


def test_optimizers() -> None:
    sgd = LeNet5(lr=0.3, momentum=0.5, weight_decay=0.1).configure_optimizers()
    assert isinstance(sgd, torch.optim.SGD)
    assert {name: sgd.defaults[name] for name in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.3,
        "momentum": 0.5,
        "weight_decay": 0.1,
    }
    adamw = ViT(lr=0.2, weight_decay=0.3).configure_optimizers()
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.2, 0.3)


QUIET_TRAINER = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_logged_metrics_are_the_mean_loss_and_the_accuracy_of_all_examples() -> None:
    torch.manual_seed(0)
    model = MLP(image_size=8)
    images, labels = torch.randn(10, 1, 8, 8), torch.arange(10) // 2
    # The last batch is smaller: a mean of batch means would be off.
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    trainer = Trainer(**QUIET_TRAINER)
    trainer.validate(model, loader, verbose=False)
    validated = dict(trainer.callback_metrics)
    trainer.test(model, loader, verbose=False)
    tested = dict(trainer.callback_metrics)
    with torch.no_grad():
        logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels).item()
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    assert 0 < accuracy < 1
    assert set(validated) == {"val_loss", "val_accuracy"}
    assert set(tested) == {"test_loss", "test_accuracy"}
    for metrics, stage in ((validated, "val"), (tested, "test")):
        assert math.isclose(metrics[f"{stage}_loss"], loss, rel_tol=1e-5)
        assert math.isclose(metrics[f"{stage}_accuracy"], accuracy, rel_tol=1e-6)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_mlp_learns_the_digits_under_lightnings_own_trainer() -> None:
    torch.manual_seed(0)
    data, model = Digits(batch_size=32), MLP(image_size=8)
    trainer = Trainer(max_epochs=5, num_sanity_val_steps=0, log_every_n_steps=1, **QUIET_TRAINER)
    trainer.fit(model, data)
    assert trainer.callback_metrics["train_loss"] < 0.5
    assert trainer.callback_metrics["val_accuracy"] > 0.9


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_lightnings_trainer_clips_gradients_in_mixed_precision() -> None:
    Trainer(max_steps=2, precision="bf16-mixed", gradient_clip_val=0.1, num_sanity_val_steps=0, **QUIET_TRAINER).fit(
        MLP(image_size=8), Digits(batch_size=32)
    )


def test_elsewhere_than_on_the_cpu_torch_chooses_the_optimizers_kernels() -> None:
    assert MLP(image_size=8).to("meta").configure_optimizers().defaults["fused"] is None


def test_names_are_imported_when_used() -> None:
    assert set(models.__all__) <= set(dir(models))
    with pytest.raises(AttributeError, match="no attribute 'LeNet6'"):
        models.LeNet6  # noqa: B018 - the access is what is tested
    script = "import sys, fedhq_lightning.models, fedhq_lightning.data; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
