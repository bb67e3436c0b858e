"""What of a model is each client's own."""
