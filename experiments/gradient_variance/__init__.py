"""The script `python -m experiments.gradient_variance` and its parts."""
