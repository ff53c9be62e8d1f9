"""The script `python -m experiments.vae` and its parts."""
