"""Generate values of `image` that are not the URL of an image."""

from __future__ import annotations

from tests.helpers.bad_inputs.case import NOT_AN_IMAGE, Case

NOT_A_URL = "; send an http:// or https:// URL, or a data: URI$"
MALFORMED_DATA_URI = "image is a data: URI .*; send data:image/jpeg;base64, and then the file in"
NOT_DOWNLOADED = " send the image itself as a data: URI$"
EMPTY = "image is empty; send an image$"


def cases() -> list[Case]:
    """Return values of `image` that are no URL of an image. No file is ever read."""
    return [
        Case("URLs", content[:40], content, expected)
        for expected, contents in {
            EMPTY: ("data:,", "data:image/png;base64,"),
            NOT_A_URL: (
                *(" ", "\0", "null", "a cat", "x" * 100_000, "/etc/passwd", "../../etc/passwd"),
                *("file:///etc/passwd", "ftp://a/b", "gs://bucket/cat.jpg", "javascript:alert(1)"),
                *("//host/cat.jpg", "about:blank", "HTTP", "http:/a", "https:"),
            ),
            NOT_AN_IMAGE: (
                *("data:;base64,AAAA", "data:image/png,text", "DATA:image/png;base64,AAAA"),
                *("data:image/../../x;base64,AAAA", "data:image/é;base64,AAAA"),
                "data:image/jpeg;base64," + "A" * 8_000_000,
            ),
            MALFORMED_DATA_URI: (
                *("data:", "data:image/png", "data:image/png;base64"),
                *("data:image/png;base64,!!", "data:image/png;base64,AAAAA"),
            ),
            NOT_DOWNLOADED: (
                "http://",
                "http://[::1",
                "http://127.0.0.1:1/cat.jpg",
                "https://nowhere.invalid/",
            ),
        }.items()
        for content in contents
    ]
