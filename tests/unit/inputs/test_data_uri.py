"""data: URIs: what browsers read is read, and the rest is refused with the reason."""

from __future__ import annotations

import base64
import re
import time
import tracemalloc
import urllib.parse

import pytest

from clip_embed.errors import ImageError
from clip_embed.inputs import data_uri
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


@pytest.mark.parametrize("prefix", ["data:image/png,", "data:;base64,"])
def test_escapes_take_little_memory(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolving all escapes of a body at once took a hundred times its size."""
    monkeypatch.setattr(data_uri, "PIECE", 2**12)
    uri = prefix + "%41" * 60_000
    tracemalloc.start()
    try:
        data = decode_data_uri(uri, 10**9)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert data in (b"A" * 60_000, bytes(45_000))
    assert peak < 6 * len(uri)


@pytest.mark.parametrize("shift", range(4))
def test_escape_at_the_end_of_a_piece_is_whole(shift: int) -> None:
    text = "x" * shift + "%C3%A9" * 20_000
    decoded = decode_data_uri(f"data:,{text}%", 10**9)
    assert decoded == b"x" * shift + "é".encode() * 20_000 + b"%"


def test_wrong_character_after_many_is_found_at_once() -> None:
    begin = time.process_time()
    with pytest.raises(ImageError, match="contains '!'"):
        decode_data_uri("data:;base64," + "A" * 2_000_000 + "!AAA", 10**9)
    assert time.process_time() - begin < 1
