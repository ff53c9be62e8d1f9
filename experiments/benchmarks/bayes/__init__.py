"""The script `python -m experiments.benchmarks.bayes` and its part."""
