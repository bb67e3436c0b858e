"""The federated loop: cohorts, local fits, updates, aggregation, run state."""
