"""What callbacks for `lightning.pytorch.Trainer` share: lanes, metrics of the quantized model, and its folder."""
