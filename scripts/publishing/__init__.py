"""The parts of scripts/publish_weights.py: read a model, convert it, write it."""

DEFAULT_MODEL = "ViT-L-14-quickgelu"
