"""Text or an image in, CLIP's vector out. `predict.py` shows how the parts fit together."""
