"""How many usable updates a round takes to move the model: what was asked for, or what a rule or masks need."""

from __future__ import annotations

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.settings import RunSettings


def check_cohort_size(settings: RunSettings, cohort_size: int) -> None:
    """Refuse cohorts of which no round could ever have enough.

    Raises:
        ConfigurationError: Fewer clients than `min_clients`, or than the robust rule takes.
    """
    if settings.min_clients > cohort_size:
        raise ConfigurationError(
            f"min_clients {settings.min_clients}: a cohort has {cohort_size} clients, so no round could ever "
            "have as many usable updates; lower it, or raise clients_per_round"
        )
    if settings.robust_rule is not None:
        settings.robust_rule.check_cohort(cohort_size)


def fewest_updates(settings: RunSettings, threshold: int) -> int:
    """Usable updates that a round takes.

    Args:
        settings: Of the run.
        threshold: Of secure aggregation; 1 without.
    """
    return max(settings.min_clients, threshold, 1 if settings.robust_rule is None else settings.robust_rule.min_updates)


def too_few(num_updates: int, settings: RunSettings, least: int) -> str:
    """Why a round left the model as it was.

    Args:
        num_updates: Usable ones that arrived.
        settings: Of the run.
        least: What `fewest_updates` told.
    """
    if not num_updates:
        return "no usable update arrived"
    who = f"min_clients {least}"
    if least > settings.min_clients:
        rule = settings.robust_rule
        named = type(rule).__name__
        who = f"the threshold of secure_aggregation, {least}" if rule is None else f"the {least} that {named} takes"
    return f"{num_updates} usable updates arrived, fewer than {who}"
