"""What this program costs, as ratios to what a competent user would otherwise write: ``python -m benchmarks``.

Rules
-----
Every peer answers the same question, and its answer is compared with ours before anything is timed. Contenders of one
subject run in turn within each round, in an order that rotates, so that a busy machine slows all of them; what is
reported is the median, over rounds, of the ratio *within* a round. Absolute times are beside it and speak for one
machine only.

What this does not do
---------------------
It judges no machine and fails no build by itself; ``--check`` compares with a stored run.
"""
