"""The parts of scripts/check_gpu.py: each runs as a process of its own, see part.py.

environment  the machine, and the ceilings of its device
models       the same random weights for this service, transformers and open_clip
parity       vectors in float16, in batches and on the device, beside references
cold_start   process start → READY
texts        direct calls, beside the libraries; see throughput.py
images       the same
serving      the real Cog server under load
preparation  images and texts per second on the CPUs
memory       of the device and of the process
"""
