"""The script `python -m experiments.amortization` and its parts."""
