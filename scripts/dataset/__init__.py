"""The parts of scripts/embed_dataset.py: plan and stages. Workers of a cluster import them."""
