"""`fedhq compare`: allocators side by side on one recipe, paired by seed."""
