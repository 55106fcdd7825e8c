"""What clients send, made ready for the network. Imports no torch.

tokenizer      text → token ids
preprocess     image file → the square of pixels that CLIP reads
color          any image that Pillow opens → upright 8-bit RGB
resize         resize the shorter side and crop the center, as torchvision does
decode_limits  detect decompression bombs before decoding
fast_jpeg      inexact shortcuts for large photographs, off by default
"""
