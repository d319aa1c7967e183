"""How many samples would show an effect of the size that was observed.

The effect in the population may be smaller than the one observed, and the number then too small (Hoenig and
Heisey, "The Abuse of Power", The American Statistician 55, 2001): it plans the next comparison, it does not
explain this one.
"""

from __future__ import annotations

import math

from scipy import special

from seatrial.compare.bootstrap import PairedEstimate

POWER = 0.8
"""The chance to see an effect that is there."""


def samples_needed_for_accuracy(
    only_original: int, only_trained: int, num_samples: int, confidence: float
) -> int | None:
    """Samples for McNemar's test to see the observed discordant shares with power `POWER`; None if equal.

    Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43,
    1987, page 209.
    """
    discordant = (only_original + only_trained) / num_samples
    difference = (only_trained - only_original) / num_samples
    if difference == 0:
        return None
    z_level, z_power = _quantiles(confidence)
    root: float = z_level * discordant**0.5 + z_power * max(discordant - difference**2, 0.0) ** 0.5
    return max(1, math.ceil(float(root / difference) ** 2))


def samples_needed(estimate: PairedEstimate, num_samples: int, confidence: float) -> int | None:
    """The same for any metric, by the normal approximation: the standard error falls with 1/sqrt(n)."""
    if estimate.difference == 0:
        return None
    z_level, z_power = _quantiles(confidence)
    ratio = (z_level + z_power) * estimate.standard_error / abs(estimate.difference)
    return max(1, math.ceil(num_samples * ratio**2))


def _quantiles(confidence: float) -> tuple[float, float]:
    return float(special.ndtri((1 + confidence) / 2)), float(special.ndtri(POWER))
