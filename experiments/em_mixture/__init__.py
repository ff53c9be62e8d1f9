"""The script `python -m experiments.em_mixture` and its parts."""
