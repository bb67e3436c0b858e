"""Settings that cannot be together, whatever module, data and fleet are: one row for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms.asynchronous import AsynchronousAggregator
from fedhq_lightning.federated.privacy.mechanisms import CentralPrivacy, LocalPrivacy
from fedhq_lightning.federated.settings import RunSettings


class _Excluded(NamedTuple):
    """Two settings, in words, whether a run has both, and what to say of it."""

    one: str
    other: str
    has_both: Callable[[RunSettings], bool]
    why: str


def _is_rounded(settings: RunSettings) -> bool:
    return settings.scheme is not None or settings.uplink_bits is not None


def _rounds_models(settings: RunSettings) -> bool:
    return _is_rounded(settings) and settings.uplink == "weights"


def _is_central(settings: RunSettings) -> bool:
    return isinstance(settings.privacy, CentralPrivacy)


def _is_local(settings: RunSettings) -> bool:
    return isinstance(settings.privacy, LocalPrivacy)


def _has_static_ranges(settings: RunSettings) -> bool:
    return settings.scheme is not None and settings.scheme.has_static_ranges


def _is_asynchronous(settings: RunSettings) -> bool:
    return isinstance(settings.aggregator, AsynchronousAggregator)


def _sends_changes(settings: RunSettings) -> bool:
    return isinstance(settings.aggregator, AsynchronousAggregator) and settings.aggregator.sends_changes


_EXCLUDED = (
    _Excluded(
        *("aggregator: FedBuff", "uplink: weights"),
        lambda settings: _sends_changes(settings) and settings.uplink == "weights",
        "it adds what clients changed of the models that they had; take uplink: delta, or FedAsync",
    ),
    _Excluded(
        *("aggregator: FedAsync", "uplink: delta on a grid"),
        lambda settings: (
            _is_asynchronous(settings)
            and not _sends_changes(settings)
            and settings.uplink == "delta"
            and _is_rounded(settings)
        ),
        "it mixes whole models; take uplink: weights, or FedBuff",
    ),
    _Excluded(
        *("an aggregator for which no round waits", "round_deadline"),
        lambda settings: _is_asynchronous(settings) and settings.round_deadline is not None,
        "nobody is late: an update that comes later weighs less; leave the deadline out",
    ),
    _Excluded(
        *("an aggregator for which no round waits", "measured_seconds"),
        lambda settings: _is_asynchronous(settings) and settings.measured_seconds is not False,
        "whose update comes first is the virtual clock's to say; take FedAvg",
    ),
    _Excluded(
        *("round_deadline", "measured_seconds"),
        lambda settings: settings.round_deadline is not None and settings.measured_seconds is not False,
        "who would be late is known before it trains, by the virtual clock; leave one of them out",
    ),
    _Excluded(
        *("an aggregator for which no round waits", "secure_aggregation"),
        lambda settings: _is_asynchronous(settings) and settings.secure_aggregation is not None,
        "masks cancel only within a cohort that began together; take FedAvg",
    ),
    _Excluded(
        *("an aggregator for which no round waits", "robust_rule"),
        lambda settings: _is_asynchronous(settings) and settings.robust_rule is not None,
        "its steps weigh updates by their age, and a robust rule weighs all alike; take FedAvg",
    ),
    _Excluded(
        *("an aggregator for which no round waits", "privacy"),
        lambda settings: _is_asynchronous(settings) and settings.privacy is not None,
        "what is spent is accounted by cohorts that are drawn anew in each round; take FedAvg",
    ),
    _Excluded(
        *("aggregator: FedNova", "uplink: weights on a grid"),
        lambda settings: settings.aggregator.sends_scaled_changes and _rounds_models(settings),
        "its clients send shares of their changes, which the rounding of whole models would lose; take uplink: delta",
    ),
    _Excluded(
        *("ditto", "personal_layers"),
        lambda settings: settings.ditto is not None and settings.personal_layers is not None,
        "with the one a client has a whole model of its own, with the other some layers; leave one of them out",
    ),
    _Excluded(
        *("privacy", "personal_layers"),
        lambda settings: settings.privacy is not None and settings.personal_layers is not None,
        "the round to deploy would be chosen by what clients find with their own layers, without noise; leave one out",
    ),
    _Excluded(
        *("ditto", "privacy: LocalPrivacy"),
        lambda settings: settings.ditto is not None and _is_local(settings),
        "every client would train on its examples twice, and be told to have spent epsilon once; take CentralPrivacy",
    ),
    _Excluded(
        *("privacy: CentralPrivacy", "min_clients above 1"),
        lambda settings: _is_central(settings) and settings.min_clients > 1,
        "whether the model moves would tell how many took part; every round moves it, if only by noise: leave it at 1",
    ),
    _Excluded(
        *("privacy: CentralPrivacy", "aggregator: FedNova"),
        lambda settings: _is_central(settings) and settings.aggregator.sends_scaled_changes,
        "the length of a client's fit, which it sends, would be clipped and noised with its update; take FedAvg",
    ),
    _Excluded(
        *("privacy: CentralPrivacy", "robust_rule"),
        lambda settings: _is_central(settings) and settings.robust_rule is not None,
        "noise is accounted for a sum of clipped updates, of which each client changes a bounded part; a rule gives "
        "no sum; take one of them",
    ),
    _Excluded(
        *("privacy", "a scheme with static activation ranges"),
        lambda settings: settings.privacy is not None and _has_static_ranges(settings),
        "they are extremes of clients' data; leave the s out of the scheme",
    ),
    _Excluded(
        *("privacy", "evaluate_clients"),
        lambda settings: settings.privacy is not None and bool(settings.evaluate_clients),
        "what each client finds would be told without noise; set evaluate_clients to null",
    ),
    _Excluded(
        *("privacy", "fine_tuning"),
        lambda settings: settings.privacy is not None and settings.fine_tuning is not None,
        "what each client finds with the model that it tuned would be told without noise; leave one of them out",
    ),
    _Excluded(
        *("fine_tuning", "evaluate_clients: false"),
        lambda settings: settings.fine_tuning is not None and settings.evaluate_clients is False,
        "the clients that evaluate are those that tune; leave evaluate_clients out, or say how many there are",
    ),
    _Excluded(
        *("fine_tuning", "final_evaluation: false"),
        lambda settings: settings.fine_tuning is not None and not settings.final_evaluation,
        "what it brings is found in the final evaluation; leave one of them out",
    ),
    _Excluded(
        *("privacy: LocalPrivacy", "lanes.bias_correction"),
        lambda settings: _is_local(settings) and settings.lanes.bias_correction,
        "it changes the model by a batch of the client's data without noise; turn it off",
    ),
    _Excluded(
        *("privacy: LocalPrivacy", "accumulate_grad_batches above 1"),
        lambda settings: _is_local(settings) and settings.fit_options.accumulate_grad_batches > 1,
        "every step has noise of its own; take larger batches instead",
    ),
    _Excluded(
        *("secure_aggregation", "max_norm_ratio"),
        lambda settings: settings.secure_aggregation is not None and settings.max_norm_ratio is not None,
        "nobody sees the norm of an update; set max_norm_ratio to null",
    ),
    _Excluded(
        *("secure_aggregation", "privacy: CentralPrivacy"),
        lambda settings: settings.secure_aggregation is not None and _is_central(settings),
        "the server clips each update before it adds noise, and sees none; LocalPrivacy hides examples within the sum",
    ),
    _Excluded(
        *("secure_aggregation", "robust_rule"),
        lambda settings: settings.secure_aggregation is not None and settings.robust_rule is not None,
        "a rule compares updates, and the server sees their sum alone; take one of them",
    ),
)


def check_combinations(settings: RunSettings) -> None:
    """Refuse settings that exclude each other.

    Raises:
        ConfigurationError: The first two that do.
    """
    for row in _EXCLUDED:
        if row.has_both(settings):
            raise ConfigurationError(f"{row.one} and {row.other} cannot be together: {row.why}")
