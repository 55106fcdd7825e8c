"""The network.

clip    CLIP's two towers in plain torch
config  what `open_clip_config.json` says: architecture and preprocessing
device  which device, and in which precision
"""
