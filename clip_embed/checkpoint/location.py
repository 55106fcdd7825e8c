"""Parse the location of published files: a directory, a web server or a bucket.

Reader (`CLIP_WEIGHTS`) and publisher (DEST) use the same rules, so that both accept a location and
mean the same objects, or both refuse it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from clip_embed.errors import LocationError

HOW_TO_SET = (
    "set CLIP_WEIGHTS to gs://bucket/prefix, https://host/prefix or a directory"
    " that scripts/publish_weights.py has filled"
)
LOOPBACK = ("localhost", "127.0.0.1", "::1")

# Source: Cloud Storage, "Bucket names".
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ONE_SLASH = re.compile(r"(gs|https?|s3|az|file):", re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """text: as given, without a slash at its end; for messages. scheme: "gs", "http", "https", or
    "file" for a directory. host: or the bucket. path: without a slash at its beginning or end."""

    text: str
    scheme: str
    host: str = ""
    path: str = ""

    @property
    def object_path(self) -> str:
        """The path of the objects' URL in Cloud Storage's XML API: bucket and prefix, escaped."""
        return "/".join([self.host, quote(self.path)]).rstrip("/")


def parse_location(text: str | None, name: str = "CLIP_WEIGHTS", way_out: str = "") -> Location:
    """Parse `text`, the value of the setting or argument `name`.

    Raises LocationError, whose message quotes no part that may be a password: it ends up in logs.
    """
    way_out = way_out or HOW_TO_SET
    if text is None or not text.strip():
        problem = "not set" if name == "CLIP_WEIGHTS" else "empty"
        raise LocationError(f"{name} is {problem}; {way_out}")
    text = text.strip()
    if _CONTROL_CHARACTER.search(text):
        raise LocationError(
            f"{name} holds a tab, a line break or another control character; remove it"
        )
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise LocationError(f"{name} holds bytes that are no text; remove them")
    scheme, separator, rest = text.partition("://")
    if not separator and (almost := _ONE_SLASH.match(text)):
        raise LocationError(f"{name} begins with {almost[1]}: without two slashes; {way_out}")
    if os.path.expanduser(text).startswith("~"):
        raise LocationError(f"{name} is {text!r}, a home directory that does not exist; {way_out}")
    if not separator or scheme == "file":
        return Location(text.rstrip("/") or "/", "file")
    if scheme not in ("gs", "http", "https"):
        raise LocationError(f"{name} begins with {scheme}://; {way_out}")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port  # validated when they are accessed
    except ValueError:
        raise LocationError(f"{name} is not a well-formed URL; {way_out}") from None
    if "@" in parts.netloc or "?" in rest or "#" in rest:
        raise LocationError(
            f"{name} holds a user name, a password, a query or a fragment, which it cannot have;"
            f" {way_out}"
        )
    if not host:
        raise LocationError(f"{name} is {text!r}, which has no host or bucket; {way_out}")
    text = text.rstrip("/")
    path = urlsplit(text).path.removeprefix("/")
    if path and any(segment in ("", ".", "..") for segment in path.split("/")):
        raise LocationError(
            f"{name} is {text!r}, whose path has a segment that is empty, '.' or '..'; remove it"
        )
    if scheme == "gs" and not _BUCKET.fullmatch(parts.netloc):
        raise LocationError(
            f"{name} names the bucket {parts.netloc!r}; bucket names have three or more lowercase"
            " letters, digits, '-', '_' and '.'"
        )
    if scheme == "http" and host not in LOOPBACK:
        raise LocationError(f"{text} is not encrypted; use https:// (http:// only on this host)")
    return Location(text, scheme, parts.netloc, path)
