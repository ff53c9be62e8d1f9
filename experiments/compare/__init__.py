"""The script `python -m experiments.compare` and its part."""
