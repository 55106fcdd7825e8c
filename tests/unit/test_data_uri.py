"""data: URIs: what browsers read is read, and the rest is refused with the reason."""

from __future__ import annotations

import base64
import re
import urllib.parse

import pytest

from clip_embed.errors import ImageError
from clip_embed.inputs.data_uri import decode_data_uri, is_data_uri

DATA = bytes(range(256)) * 3 + b"\xfb\xff"
PLAIN = base64.b64encode(DATA).decode()
URL_SAFE = base64.urlsafe_b64encode(DATA).decode()


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{PLAIN}",
        f"data:;base64,{PLAIN}",
        f"data:image/png;name=a.png;base64,{PLAIN}",
        f"DATA:image/png;BASE64,{PLAIN}",
        f"data:image/png; base64,{PLAIN}",
        f"data:image/png;base64,{PLAIN.rstrip('=')}",
        f"data:image/png;base64,{URL_SAFE}",
        f"data:image/png;base64,{URL_SAFE.rstrip('=')}",
        f"data:image/png;base64,{urllib.parse.quote(PLAIN, safe='')}",
        f"data:image/png;base64, {PLAIN[:76]}\r\n{PLAIN[76:]}\n",
        f"data:image/png,{PLAIN}",
        f"data:image/png,{urllib.parse.quote_from_bytes(DATA)}",
    ],
    ids=[
        *("plain", "no type", "with a parameter", "upper case", "space", "no padding", "URL-safe"),
        *("URL-safe without padding", "escaped", "lines", "base64 not declared", "bytes escaped"),
    ],
)
def test_unambiguous_data_uri_is_decoded(uri: str) -> None:
    assert is_data_uri(uri)
    assert decode_data_uri(uri, len(DATA)) == DATA


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:image/png;base64", "without a comma before its data"),
        (f"data:image/png;base64{PLAIN[:9]}", "without a comma before its data"),
        ("data:image/png;base64,abcde", "whose base64 is cut off"),
        ("data:image/png;base64,ab*d", "whose base64 contains '*'"),
        ("data:image/png;base64,ab=d", "whose base64 contains '='"),
    ],
)
def test_malformed_data_uri_is_refused(uri: str, message: str) -> None:
    """The message says what is wrong and what to send."""
    expected = f"image is a data: URI {message}; send data:image/jpeg;base64, and then the file"
    with pytest.raises(ImageError, match=re.escape(expected)):
        decode_data_uri(uri, 1000)


@pytest.mark.parametrize("uri", ["data:,", "data:;base64,", "data:image/png;base64,===="])
def test_data_uri_without_data_is_empty(uri: str) -> None:
    assert decode_data_uri(uri, 1000) == b""


def test_data_uri_over_the_limit_is_refused() -> None:
    with pytest.raises(ImageError, match=r"^image is 770 bytes; the limit is 769 \(CLIP_MAX_IMAGE"):
        decode_data_uri(f"data:;base64,{PLAIN}", 769)
