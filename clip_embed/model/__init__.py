"""The network.

clip           CLIP's two towers in plain torch
config         what `open_clip_config.json` says: architecture and preprocessing
batch_limits   how many inputs run as one batch
device         which device, and in which precision
gpu_diagnosis  why torch sees no GPU, and what to do about it
cuda_graphs    replay the towers on a GPU with one launch
cuda_kernels   a kernel for these graphs
"""
