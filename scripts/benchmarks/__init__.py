"""What `scripts/bench.py` measures, one file each; `peers/` holds what we are held against."""
