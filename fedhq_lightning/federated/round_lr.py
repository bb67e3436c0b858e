"""How learning rates change over the rounds."""

import math


def learning_rate_scale(round_lr: str | float, round_number: int, max_rounds: int) -> float:
    """Factor on every learning rate in a round.

    Args:
        round_lr: "constant"; "cosine" or "linear" from 1 towards 0 over the run; or a factor per round.
        round_number: From 1.
        max_rounds: Rounds in all.
    """
    done = (round_number - 1) / max_rounds
    if round_lr == "constant":
        return 1.0
    if round_lr == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if round_lr == "linear":
        return 1 - done
    return float(round_lr) ** (round_number - 1)
