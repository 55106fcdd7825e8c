"""The parts of scripts/embed_dataset.py: plan, stages and run. Workers of a cluster import them."""

DEFAULT_CORES_PER_EMBEDDER = 4
