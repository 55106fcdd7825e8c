"""What clients send, made ready for the network. Imports no torch.

tokenizer       text → token ids
image_url       http(s) URL → image file, within limits
public_address  connections to public addresses only
data_uri        data: URI → image file
preprocess      image file → the square of pixels that CLIP reads
truncation      detect files that end too early: HEIC, AVIF, WebP, TIFF
png_chunks      drop the chunks of a PNG that do not affect its pixels
jpeg_end_marker append the end-of-image marker to a JPEG that lacks only that
tiff_fixes      kinds of TIFF that Pillow reads wrongly
color           any image that Pillow opens → upright 8-bit RGB
resize          resize the shorter side and crop the center, as torchvision does
decode_limits   detect decompression bombs before decoding
fast_jpeg       inexact shortcuts for large photographs, off by default
"""
