"""The benchmarks of `scripts/bench.py`, one file each. `peers/` holds what they compare with."""
