"""Trials in words: for the terminal, the recipes' headers and the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedhq_lightning.experiments.objectives import Objective
from fedhq_lightning.experiments.search_space import Space
from fedhq_lightning.report.formats import format_bytes, format_metric, format_seconds


def describe_value(name: str, value: float) -> str:
    """A number with its unit."""
    if name.endswith("_seconds"):
        return format_seconds(value)
    if name.endswith("_bytes"):
        return format_bytes(value)
    return format_metric(value) if "metric" in name else f"{value:g}"


def describe_values(objectives: Sequence[Objective], values: Sequence[float]) -> str:
    """Every objective with its value."""
    return ", ".join(
        f"{each.name} {describe_value(each.name, value)}" for each, value in zip(objectives, values, strict=True)
    )


def describe_parameters(space: Space, suggested: Mapping[str, Any]) -> str:
    """Every searched key, shortened, with its value."""
    return ", ".join(
        f"{name} {describe_parameter(each.value(suggested[each.key]))}"
        for name, each in zip(space.short_names(), space.parameters, strict=True)
        if each.key in suggested
    )


def describe_parameter(value: Any) -> str:
    """Floats in four digits; everything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
