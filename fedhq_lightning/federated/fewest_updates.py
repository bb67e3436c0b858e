"""How many usable updates a round takes to move the model: as many as were asked for, and as the rule needs."""

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


def too_few(num_updates: int, settings: RunSettings) -> str:
    """Why a round left the model as it was."""
    if not num_updates:
        return "no usable update arrived"
    least = f"min_clients {settings.min_clients}"
    if settings.robust_rule is not None and settings.min_updates > settings.min_clients:
        least = f"the {settings.min_updates} that {type(settings.robust_rule).__name__} takes"
    return f"{num_updates} usable updates arrived, fewer than {least}"
