"""The benchmark of the deployed model's files: a small model of each kind, its tables and its verdict."""

from deployed_files import Row, best, measure, model_table, verdict, with_batch_norm
from torch import nn

from fedhq_lightning.models import MLP, ResNet20

ROWS = [
    Row("fp32 in torch", 7000, "", {"1": 2.0, "64": 8.0}),
    Row("fp32 in onnxruntime", 7000, "", {"1": 1.0, "64": 9.0}),
    Row("model.pt2", 3000, "the same bits on 64 samples", {"1": 4.0, "64": 2.0}),
    Row("model.pte", None, "a reason", {}),
]


def test_every_form_is_measured() -> None:
    rows = measure(MLP(hidden_sizes=(16,)), "w4a8", batch=3, rounds=2, formats=["onnx"])
    told = {row.form: row for row in rows}
    assert {"fp32 in torch", "fp32 in onnxruntime", "model.pt2", "model.onnx", "model.onnx, static"} <= told.keys()
    for row in rows:
        assert list(row.milliseconds) == ["1", "3"]
        assert min(row.milliseconds.values()) > 0
        assert bool(row.agreement) == row.form.startswith("model.")
    assert told["model.onnx"].agreement == told["model.pt2"].agreement == "the same bits on 3 samples"


def test_the_fastest_of_each_kind_is_bold_and_judged() -> None:
    assert model_table(ROWS).splitlines()[2:] == [
        "| fp32 in torch | 7 kB | 2 | **8** | - |",
        "| fp32 in onnxruntime | 7 kB | **1** | 9 | - |",
        "| model.pt2 | 3 kB | **4** | **2** | the same bits on 64 samples |",
        "| model.pte | - | - | - | a reason |",
    ]
    assert best(ROWS, "64", is_float=True) is ROWS[0]
    assert verdict({"MLP": ROWS}) == (
        "- MLP: batch of 1: `model.pt2` is 4 times as slow as fp32 in onnxruntime; batch of 64: `model.pt2` is 4 times "
        "as fast as fp32 in torch"
    )


def test_batch_norm_takes_the_place_of_group_norm() -> None:
    kinds = [type(part) for part in with_batch_norm(ResNet20()).modules()]
    assert nn.BatchNorm2d in kinds
    assert nn.GroupNorm not in kinds
