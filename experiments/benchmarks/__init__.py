"""Speed of vijax against the tightest loops that could be written by hand. One script per group of workloads.

What misses its aim, and what is known of why:
- full rank D=200: 1.56 to 1.62 (aim 1.25), and 1.13 with the non-finite policy taken out (check and selection together; the
  selection keeps the old moments alive, so the compiled step copies them).
- VAEs: 1.2 to 1.3 (aim 1.1). The same check and copies are in the compiled step; their share was not measured.
- 1,000 gradient draws: 2.7 (aim 1.25). Not taken apart; the report also averages the loss, which the hand-written one drops.
- tables: 9 at N = 100,000 (aim 3), and 2.0 times slower at N = 1,000,000 than at 1,000 (aim 1.3). Not profiled; each leaf is
  gathered and scattered by itself.
"""
