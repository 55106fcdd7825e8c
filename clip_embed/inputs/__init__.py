"""What clients send, made ready for the network. Imports no torch.

tokenizer      text → token ids
image_url      http(s) URL → image file, within limits, from public hosts only
data_uri       data: URI → image file
preprocess     image file → the square of pixels that CLIP reads
container      detect files that end too early: HEIC, AVIF, WebP, TIFF
container_png  hide the chunks of a PNG that its pixels do not need
container_jpeg complete a JPEG that lacks only its last marker
tiff_samples   kinds of TIFF that Pillow reads wrongly
color          any image that Pillow opens → upright 8-bit RGB
resize         resize the shorter side and crop the center, as torchvision does
decode_limits  detect decompression bombs before decoding
fast_jpeg      inexact shortcuts for large photographs, off by default
"""
