"""Recipes: one YAML file a run. Listed by `fedhq ls`, run by `fedhq run NAME`."""
