"""Speed against the tightest loops that could be written by hand, one script per question."""
