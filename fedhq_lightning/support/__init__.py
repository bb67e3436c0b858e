"""What every part may use and nothing of it is federated: files, locks, threads, memory, seeds, collectives."""
