"""Which way a monitored value is better, by the words of its name."""

from __future__ import annotations

import re

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import MonitorMode

_SMALLER_IS_BETTER = (
    "loss losses logloss error errors err nll ce bce xent cross_entropy crossentropy perplexity ppl bpc bpd "
    "mse rmse nrmse msle rmsle mae mape smape wmape wer cer ter mer eer ece fid kid lpips crps brier deviance kl "
    "divergence distance misclassification misclassifications mistakes davies_bouldin negative_log_likelihood "
    "neg_log_likelihood"
)
_LARGER_IS_BETTER = (
    "acc accuracy accuracies macc f1 f1score fbeta auc auroc auprc ap map precision recall sensitivity specificity "
    "iou miou jaccard dice r2 psnr snr sdr ssim similarity bleu rouge rougel rougelsum meteor cider chrf dcg ndcg mrr "
    "mcc matthews kappa pearson spearman likelihood elbo em exact_match correct explained_variance"
)
_LARGER_IF_NO_OTHER_TELLS = "score top"
"""Of most kinds of scores; but a Brier score and a top-5 error are what the other word says."""
_TURNS = (
    "neg negative minus inverse inverted reciprocal ratio gap drop decrease decline reduction increase gain "
    "improvement delta diff difference change std stddev spread var variance"
)
"""Of these a value is another's opposite, a change or the spread, so that the words beside them do not tell."""
_STAGES = "train training val valid validation test eval dev"
"""May be written together with a word: valloss."""


def resolve_monitor_mode(monitor: str | None, monitor_mode: MonitorMode | None) -> MonitorMode:
    """As asked, else what the words of the monitored name tell.

    "min" for loss, error, nll, ce, perplexity, mse, mae, wer, distance and the like; "max" for acc, accuracy, f1, auc,
    precision, recall, iou, map, r2, psnr, bleu and the like, and for score and top where no other word tells. Words
    are whole ones: `val_gloss` has no loss in it. They end where something that is no letter or digit stands,
    underscores too, and before a capital (`valLoss`, `MSELoss`); a number may follow, as in `map50`.

    Raises:
        ConfigurationError: The name has words of both kinds, or none, or one such as "negative", "ratio" or "std".
    """
    if monitor_mode is not None:
        return monitor_mode
    if monitor is None:
        return "max"
    words = " ".join(_words(monitor))
    smaller, larger = _SMALLER.findall(words), _LARGER.findall(words)
    # "negative" and "variance" are also words of names that tell.
    turned = _TURNING.findall(_SMALLER.sub("", _LARGER.sub("", words)))
    if not (smaller or larger):
        larger = _LARGER_ALONE.findall(words)
    if bool(smaller) is bool(larger) or turned:
        found = ", ".join(repr(word) for word in dict.fromkeys([*smaller, *larger, *turned]))
        why = f" ({found} together)" if found else ""
        raise ConfigurationError(
            f"trainer.monitor {monitor!r} does not tell whether smaller or larger is better{why}; set "
            "trainer.monitor_mode to min or max"
        )
    return "min" if smaller else "max"


def _any_of(*phrases: str) -> str:
    """One of the words; the longest first, so that a phrase goes before a word in it."""
    each = " ".join(phrases).split()
    return "|".join(word.replace("_", " ") for word in sorted(each, key=len, reverse=True))


_SMALLER = re.compile(rf"\b(?:{_any_of(_SMALLER_IS_BETTER)})(?=\d*\b)")
_LARGER = re.compile(rf"(?<!\bneg log )(?<!\bnegative log )\b(?:{_any_of(_LARGER_IS_BETTER)})(?=\d*\b)")
_LARGER_ALONE = re.compile(rf"\b(?:{_any_of(_LARGER_IF_NO_OTHER_TELLS)})(?=\d*\b)")
_TURNING = re.compile(rf"\b(?:{_any_of(_TURNS)})\b")
_KNOWN = _any_of(_SMALLER_IS_BETTER, _LARGER_IS_BETTER, _LARGER_IF_NO_OTHER_TELLS)
_WHOLE = re.compile(rf"(?:{_KNOWN})\d*")
_TOGETHER = re.compile(rf"({_any_of(_STAGES)}|{_KNOWN})({_KNOWN})\d*")
_PART = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+")


def _words(name: str) -> list[str]:
    """The name's words in small letters: `val/mAP50` is val, map50; `valLoss` is val, loss."""
    words = list[str]()
    for part in re.split(r"[\W_]+", name):
        if _WHOLE.fullmatch(part.lower()) or not part.isascii():
            words.append(part.lower())
        elif together := _TOGETHER.fullmatch(part.lower()):
            words += together.groups()
        else:
            words += [word.lower() for word in _PART.findall(part)]
    return words
