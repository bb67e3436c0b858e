"""`fedhq tune`: an Optuna study over whole runs of a recipe."""
