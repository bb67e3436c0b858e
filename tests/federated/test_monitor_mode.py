"""Which way a monitored value is better: told by the words of its name, or asked for."""

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.monitor_mode import resolve_monitor_mode

SMALLER = """
    val_loss valLoss VAL_LOSS valloss val/loss/dataloader_idx_0 train_loss_epoch val_losses valLosses loss_G MSELoss
    mseloss L1Loss HingeLoss log_loss logLoss ValError err rmse val_mape perplexity val_nll NLLLoss val_ce ppl val/bce
    val-wer cross_entropy CrossEntropy mae word_error_rate WordErrorRate error_rate top5_error Top1Error
    MeanSquaredError MeanAbsolutePercentageError CalibrationError HammingDistance KLDivergence brier_score fid_score
    davies_bouldin_score val_nll/dataloader_idx_0 negative_log_likelihood negLogLikelihood equal_error_rate
"""
LARGER = """
    val_acc val_accuracy valAccuracy valacc val_acc1 Acc@1 top5 val/top5acc top_5_accuracy val_f1 F1 F1Score f1_macro
    R2Score r2 AUROC BinaryAUROC val.mAP mAP50 map50 mAP_50_95 bleu@4 ROUGE-L rougeLsum mIoU val_IoU BinaryAccuracy
    MulticlassF1Score MulticlassJaccardIndex MatthewsCorrCoef CohenKappa FBetaScore silhouette_score val_score
    average_precision val_gloss_accuracy terrace_accuracy log_likelihood exact_match explained_variance
    StructuralSimilarityIndexMeasure NormalizedDCG val_errorless_f1
"""
NEITHER = """
    val_reward policy_entropy val dance prices roadmap val_gloss place closs accumulated epoch terror_précision
"""
BOTH = """
    val_f1_error val_ce_acc val_distance_accuracy val_accuracy_loss val_dice_loss diceloss accError f1/loss
"""
TURNED = """
    neg_mean_squared_error negative_loss negLoss loss_ratio acc_ratio accuracy_gap accuracy_drop error_reduction
    val_acc_std loss_variance inverse_loss negative_accuracy delta_score
"""


@pytest.mark.parametrize(
    ("names", "wanted"), [(SMALLER, "min"), (LARGER, "max")], ids=["smaller is better", "larger is better"]
)
def test_words_tell(names: str, wanted: str) -> None:
    assert {name: resolve_monitor_mode(name, None) for name in names.split()} == dict.fromkeys(names.split(), wanted)


@pytest.mark.parametrize("name", (NEITHER + BOTH + TURNED).split())
def test_a_name_that_does_not_tell_its_direction(name: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"'{name}' .* smaller or larger .* set trainer\.monitor_mode to min or max"
    ):
        resolve_monitor_mode(name, None)


def test_the_refusal_names_the_words() -> None:
    with pytest.raises(ConfigurationError, match=r"better \('error', 'f1' together\)"):
        resolve_monitor_mode("val_f1_error", None)
    with pytest.raises(ConfigurationError, match=r"better \('loss', 'ratio' together\)"):
        resolve_monitor_mode("loss_ratio", None)


def test_what_was_asked_for_wins() -> None:
    assert resolve_monitor_mode("val_loss", "max") == "max"
    assert resolve_monitor_mode("auroc", "min") == "min"
    assert resolve_monitor_mode("val_reward", "max") == "max"
    assert resolve_monitor_mode("val_f1_error", "max") == "max"
    assert resolve_monitor_mode(None, None) == "max"
