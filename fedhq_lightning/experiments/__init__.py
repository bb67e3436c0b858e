"""Many runs in one folder: comparisons of allocators, Optuna studies, and runs side by side."""
