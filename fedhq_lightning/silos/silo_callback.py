"""By what the callback that makes silos is recognised, from rooms below it."""

from fedhq_lightning.drop_in.quantized_callback import QuantizedCallback


class SiloCallback(QuantizedCallback):
    """Base of the callback that makes a silo of every process: `fedhq_lightning.callbacks.FederatedAveraging`."""
