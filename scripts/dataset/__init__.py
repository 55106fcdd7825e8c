"""The parts of scripts/embed_dataset.py: places, plan, stages. Workers of a cluster import it."""
