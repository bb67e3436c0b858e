"""Quantized training inside `lightning.Trainer`, one callback."""
