"""A faster start. Replaceable by nothing: without this folder a plain `import torch` loads the same
network, a second later, and no number changes.

torch_import  import torch without what only tracing needs, its libraries preloaded
prefault      populate memory for the weights during that import
cpu_quota     how many CPUs a container may use
timing        seconds per stage, for the log
"""
