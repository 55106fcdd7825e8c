"""A faster start. No vector depends on it: `torch_import` and `prefault` can be replaced by a plain
`import torch` and ordinary allocation, and a start then takes about a second longer.

torch_import  import torch without what only tracing needs, its libraries preloaded
prefault      populate memory for the weights during that import
cpu_quota     how many CPUs a container may use
timing        seconds per stage, for the log
"""
