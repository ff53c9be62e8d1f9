"""Speed of vijax against the tightest loops that could be written by hand. One script per group of workloads.

What is above its aim, and why, by leaving parts out: full-rank D=200 (1.56 to 1.62, aim 1.25): 1.13 without the non-finite
policy, whose selection between old and new moments copies the old ones each step. VAEs (1.2 to 1.3, aim 1.1): the same check and
copies are in their programs. 1,000 gradient draws (2.7): not taken apart; its report also averages the loss. Tables (9 at N = 100,000, aim 3;
2.0 times slower at N = 1,000,000 than at 1,000): not profiled yet; seven leaves are gathered and scattered one by one.
"""
