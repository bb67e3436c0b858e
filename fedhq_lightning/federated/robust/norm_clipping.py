"""The mean of updates none of which is longer than the usual one."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from fedhq_lightning.federated.robust.linear import WeightedSum
from fedhq_lightning.federated.robust.rule import Cohort


class NormClipping(WeightedSum):
    """The mean, weighted by examples, of updates that are shortened to the cohort's median norm where they are longer.

    Of an even number of updates the median is the shorter one in the middle. The direction of an update stays, so this
    bounds what hostile clients can do, and keeps honest ones whole.

    Source: Sun et al. 2019, "Can You Really Backdoor Federated Learning?", norm thresholding, where the bound is fixed;
    the median in its place is ours.
    """

    @override
    def weigh(self, cohort: Cohort) -> Tensor:
        norms = cohort.products.diagonal().sqrt()
        bound = norms.sort().values[(len(norms) - 1) // 2]
        # An update of norm 0 adds nothing, whatever it counts.
        factors = (bound / norms.clamp(min=1e-300)).clamp(max=1.0)
        return factors * cohort.examples / cohort.examples.sum()
