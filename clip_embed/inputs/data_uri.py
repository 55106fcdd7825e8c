"""Decode an image that is sent as a data: URI.

Read as browsers read it (RFC 2397, and "forgiving-base64 decode" of the WHATWG's Infra standard):
white space and missing padding are accepted, and so are the URL-safe alphabet and escapes such as
%2B, since none of them can mean anything else.
"""

from __future__ import annotations

import binascii
import re
import urllib.parse

from clip_embed.errors import ImageError

WAY_OUT = "send data:image/jpeg;base64, and then the file in base64"

PIECE = 2**16
"""Bytes whose escapes are resolved at a time."""

_WHITE_SPACE = re.compile(r"\s+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
_URL_SAFE = str.maketrans("-_", "+/")


def is_data_uri(value: str) -> bool:
    """Return whether `value` starts with data: in any case."""
    return value[:5].lower() == "data:"


def decode_data_uri(uri: str, max_bytes: int) -> bytes:
    """Return the bytes of a data: URI.

    Raises ImageError if it is malformed, or holds more than `max_bytes`.
    """
    head, comma, payload = uri[5:].partition(",")
    if not comma:
        raise ImageError(f"image is a data: URI without a comma before its data; {WAY_OUT}")
    # A payload of base64's characters only is never an image as it is, so it is base64 even without
    # ";base64".
    is_base64 = head.lower().replace(" ", "").endswith(";base64")
    if not is_base64 and not _BASE64.fullmatch(payload):
        data = _unescape(payload)
    else:
        data = _decode_base64(payload)
    if len(data) > max_bytes:
        raise ImageError(
            f"image is {len(data):,} bytes; the limit is {max_bytes:,} (CLIP_MAX_IMAGE_BYTES);"
            " send it smaller"
        )
    return data


def _unescape(text: str) -> bytes:
    """Resolve escapes such as %2B, a piece at a time: urllib makes an object of each."""
    pieces, start = [], 0
    data = text.encode("utf-8", "surrogatepass")
    while start < len(data):
        end = start + PIECE
        last = data.rfind(b"%", end - 2, end)
        if start < last and end < len(data):  # an escape that the end would split
            end = last
        pieces.append(urllib.parse.unquote_to_bytes(data[start:end]))
        start = end
    return b"".join(pieces)


def _decode_base64(payload: str) -> bytes:
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except (binascii.Error, ValueError):
        pass  # it may have white space, escapes, the URL-safe alphabet, or no padding
    if "%" in payload:
        payload = _unescape(payload).decode("latin-1")
    payload = _WHITE_SPACE.sub("", payload).translate(_URL_SAFE)
    payload = payload.rstrip("=")
    if len(payload) % 4 == 1:
        raise ImageError(f"image is a data: URI whose base64 is cut off; {WAY_OUT}")
    try:
        return binascii.a2b_base64(payload + "=" * (-len(payload) % 4), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        wrong = _NOT_BASE64.search(payload)
        what = f"contains {wrong[0]!r}" if wrong else str(error).lower()
        raise ImageError(f"image is a data: URI whose base64 {what}; {WAY_OUT}") from error
