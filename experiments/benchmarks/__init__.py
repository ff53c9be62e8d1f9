"""Speed of vijax against the tightest loops that could be written by hand. One script per group of workloads."""
