"""A faster start. No vector depends on it: everything but `cpu_quota` can be replaced by a plain
`import torch` and ordinary allocation, and a start then takes about a second longer.

torch_import  import torch without what only tracing needs, its libraries preloaded
prefault      populate memory for the weights during that import
cuda_start    start CUDA during that import, and cuBLAS while the weights are copied
cpu_quota     how many CPUs a container may use
timing        seconds per stage, for the log
"""
