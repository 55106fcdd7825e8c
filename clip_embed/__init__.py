"""Embed text and images with CLIP. `predict.py` is the entry point for Cog.

service          load a model; embed texts and images with it, many at a time
embedder         preprocessed inputs → vectors
batching         requests that wait for the device run as one batch
metrics          counters for Prometheus
settings         every environment variable
errors           every exception, in one tree
checkpoint/      published weights: formats, stores, download, verification, loading
model/           the network: architecture, configuration, device
inputs/          strings → tokens, image files → pixels
startup/         a faster start
cog_workarounds/ what exists only because of Cog

Imports run downwards only: predict → service → embedder, batching, metrics → checkpoint, model,
inputs → settings, errors. `weights.py` imports `checkpoint/` and errors, and nothing else. `cog` is
imported in predict.py and cog_workarounds/ only, `open_clip` and `transformers` nowhere in the
service. (tests/unit/test_imports.py)
"""
