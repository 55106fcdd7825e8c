"""Generate values of `image` that are not the URL of an image."""

from __future__ import annotations

from tests.helpers.bad_inputs.case import NOT_AN_IMAGE, Case

REFUSED_BY_COG = "^Input validation error: "
NOT_A_URL = "; send an http:// or https:// URL, or a data: URI$"


def cases() -> list[Case]:
    """Return values of `image` that are no URL of an image. No file is ever read."""
    return [
        Case("URLs", content[:40], content, expected)
        for expected, contents in {
            NOT_A_URL: (
                *("", " ", "\0", "null", "a cat", "x" * 100_000, "/etc/passwd", "../../etc/passwd"),
                *("file:///etc/passwd", "ftp://a/b", "gs://bucket/cat.jpg", "javascript:alert(1)"),
                *("DATA:image/png;base64,AAAA", "//host/cat.jpg", "about:blank", "HTTP"),
            ),
            NOT_AN_IMAGE: (
                *("data:,", "data:;base64,AAAA", "data:image/png,text", "data:image/png;base64,!!"),
                *("data:image/../../x;base64,AAAA", "data:image/é;base64,AAAA"),
                "data:image/jpeg;base64," + "A" * 8_000_000,
            ),
            REFUSED_BY_COG: (
                *("data:", "data:image/png", "data:image/png;base64", "data:image/png;base64,AAA"),
                *(
                    "http://",
                    "http://[::1",
                    "http://127.0.0.1:1/cat.jpg",
                    "https://nowhere.invalid/",
                ),
            ),
        }.items()
        for content in contents
    ]
