"""The script `python -m experiments.sbn` and its parts."""
