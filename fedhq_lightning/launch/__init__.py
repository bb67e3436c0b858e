"""From a recipe to objects: trainer, module and data."""
