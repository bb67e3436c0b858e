"""FedBuff: a step of the server takes a buffer of the first changes that come."""

from fedhq_lightning.federated.algorithms.asynchronous import AsynchronousAggregator


class FedBuff(AsynchronousAggregator):
    """Adds the mean of the first `buffer_size` changes, each of them relative to the model that its client had.

    Args:
        buffer_size: K, the updates that a step takes.
        server_lr: eta_g.
        staleness_exponent: An update weighs (1 + s) to the power of minus this, s the steps since its model.

    Raises:
        ConfigurationError: A value out of its range.

    Source: Nguyen et al. 2022, Algorithm 1, with s(tau) = 1 / sqrt(1 + tau) of its section 5; changes are weighed by
    examples, where the paper has clients alike.
    """

    sends_changes = True

    def __init__(self, buffer_size: int = 10, server_lr: float = 1.0, staleness_exponent: float = 0.5) -> None:
        super().__init__(buffer_size, server_lr, staleness_exponent)
        self.server_lr = server_lr
