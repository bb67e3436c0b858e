"""Federation inside `lightning.Trainer`: every process is a client of its own."""
