"""FedAsync: every model that comes is mixed into the global one."""

from fedhq_lightning.federated.algorithms.asynchronous import AsynchronousAggregator


class FedAsync(AsynchronousAggregator):
    """Moves the model by a share of the way to each client's, the less the older the model is that it began with.

    Args:
        mixing: alpha, the share for a model of no age, above 0.
        staleness_exponent: a of the polynomial weight (1 + s) to the power of -a, s the steps since its model.

    Raises:
        ConfigurationError: A value out of its range.

    Source: Xie et al. 2019, Algorithm 1 with the polynomial s of section 5.2; a client's proximal term is left out.
    """

    sends_changes = False

    def __init__(self, mixing: float = 0.6, staleness_exponent: float = 0.5) -> None:
        super().__init__(1, mixing, staleness_exponent)
        self.mixing = mixing
