"""One script per question, `python -m experiments.NAME --field=value`. Nothing in `vijax/` imports
from here.
"""
