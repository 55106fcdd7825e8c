"""The environment variables of this project: read, validated and documented in one place.

A leaf: imports nothing of the package but its errors, so that any module may use it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clip_embed.errors import SettingError

DEFAULT_MAX_IMAGE_PIXELS = 120_000_000
"""Cameras with "100 megapixels" make 101.8 and 108 million pixels."""

DEFAULT_MAX_IMAGE_BYTES = 100_000_000
DEFAULT_CACHE_BYTES = 10_000_000_000
"""About ten models of ViT-L/14 in float16."""

DEFAULT_IMAGE_URL_SECONDS = 30
DEFAULT_USER_AGENT = "clip-embed/0.1 (image embedding service)"
DEFAULT_MAX_CONCURRENCY = 64
"""As in `@concurrent` of predict.py; a test compares them."""


@dataclass(frozen=True)
class Setting:
    """One variable, as the README's table lists it. default: in words, empty if there is none."""

    name: str
    default: str


SETTINGS = (
    Setting("CLIP_WEIGHTS", ""),
    Setting("CLIP_WEIGHTS_CACHE", "no cache"),
    Setting("CLIP_WEIGHTS_CACHE_BYTES", f"{DEFAULT_CACHE_BYTES:,}"),
    Setting("CLIP_BILLING_PROJECT", "the owner of the bucket pays"),
    Setting("CLIP_DEVICE", "cuda if there is a GPU, else cpu"),
    Setting("CLIP_MAX_IMAGE_PIXELS", f"{DEFAULT_MAX_IMAGE_PIXELS:,}"),
    Setting("CLIP_MAX_IMAGE_BYTES", f"{DEFAULT_MAX_IMAGE_BYTES:,}"),
    Setting("CLIP_IMAGE_URLS", "public"),
    Setting("CLIP_IMAGE_URL_SECONDS", str(DEFAULT_IMAGE_URL_SECONDS)),
    Setting("CLIP_USER_AGENT", DEFAULT_USER_AGENT),
    Setting("CLIP_FAST_JPEG", "0"),
    Setting("CLIP_METRICS_PORT", "no metrics"),
    Setting("COG_MAX_CONCURRENCY", str(DEFAULT_MAX_CONCURRENCY)),
    Setting("STORAGE_EMULATOR_HOST", "Cloud Storage itself"),
)
"""Every variable of this project, and COG_MAX_CONCURRENCY, which is Cog's."""


@dataclass(frozen=True)
class Settings:
    """The validated settings.

    weights: where the model is published; `weights.pull` validates it. weights_cache: a directory,
    weights_cache_bytes: its maximum size. billing_project: pays for requests to a requester-pays
    bucket.
    device: "cuda", "cpu", or None for the default. max_image_pixels: width × height.
    max_image_bytes: of the encoded file. image_urls: which URLs are downloaded, "public", "any" or
    "none"; image_url_seconds: for one, redirects included; user_agent: sent with it.
    fast_jpeg: whether large photographs may be decoded inexactly (inputs/fast_jpeg.py).
    metrics_port: TCP port of Prometheus metrics, None for none. max_concurrency: predictions that
    Cog lets in at once.
    """

    weights: str | None = None
    weights_cache: str | None = None
    weights_cache_bytes: int = DEFAULT_CACHE_BYTES
    billing_project: str | None = None
    device: str | None = None
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
    max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES
    image_urls: str = "public"
    image_url_seconds: int = DEFAULT_IMAGE_URL_SECONDS
    user_agent: str = DEFAULT_USER_AGENT
    fast_jpeg: bool = False
    metrics_port: int | None = None
    max_concurrency: int = DEFAULT_MAX_CONCURRENCY

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read and validate the variables. A blank variable counts as unset.

        Raises SettingError, which names the variable, its value and the values allowed.
        """
        return cls(
            weights=_text(environment, "CLIP_WEIGHTS"),
            weights_cache=_text(environment, "CLIP_WEIGHTS_CACHE"),
            weights_cache_bytes=_number(environment, "CLIP_WEIGHTS_CACHE_BYTES", "bytes")
            or DEFAULT_CACHE_BYTES,
            billing_project=billing_project(environment),
            device=_choice(environment, "CLIP_DEVICE", ("cuda", "cpu")),
            max_image_pixels=_number(environment, "CLIP_MAX_IMAGE_PIXELS", "pixels")
            or DEFAULT_MAX_IMAGE_PIXELS,
            max_image_bytes=_number(environment, "CLIP_MAX_IMAGE_BYTES", "bytes")
            or DEFAULT_MAX_IMAGE_BYTES,
            image_urls=_choice(environment, "CLIP_IMAGE_URLS", ("public", "any", "none"))
            or "public",
            image_url_seconds=_number(environment, "CLIP_IMAGE_URL_SECONDS", "seconds")
            or DEFAULT_IMAGE_URL_SECONDS,
            user_agent=_header(environment, "CLIP_USER_AGENT") or DEFAULT_USER_AGENT,
            fast_jpeg=_choice(environment, "CLIP_FAST_JPEG", ("0", "1")) == "1",
            metrics_port=_number(environment, "CLIP_METRICS_PORT", "port", maximum=65535),
            max_concurrency=_number(environment, "COG_MAX_CONCURRENCY", "predictions")
            or DEFAULT_MAX_CONCURRENCY,
        )


def storage_emulator_url(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the URL of a Cloud Storage emulator, None without one.

    STORAGE_EMULATOR_HOST may lack the scheme, as for Google's own clients; http:// is then meant.
    """
    host = (_text(environment, "STORAGE_EMULATOR_HOST") or "").rstrip("/")
    if not host:
        return None
    return host if "://" in host else f"http://{host}"


def trusted_certificates() -> str | None:
    """Return the file that SSL_CERT_FILE names: obstore reads the variable itself."""
    return _text(os.environ, "SSL_CERT_FILE")


def google_credentials_file() -> tuple[str, Path] | None:
    """Return the origin ("GOOGLE_APPLICATION_CREDENTIALS" or "gcloud") and the path of the file of
    Application Default Credentials; None without one.

    Source: google-auth, `google.auth.default`.
    """
    if name := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return "GOOGLE_APPLICATION_CREDENTIALS", Path(name)
    # os.path never raises, whatever the home directory is.
    home = os.path.join(os.path.expanduser("~"), ".config", "gcloud")
    folder = os.environ.get("CLOUDSDK_CONFIG") or home
    path = os.path.join(folder, "application_default_credentials.json")
    return ("gcloud", Path(path)) if os.path.isfile(path) else None


def visible_gpus(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return CUDA_VISIBLE_DEVICES: the indices or ids of the GPUs that CUDA may see.

    None if it is unset. A blank value is not the same: it hides all GPUs.
    """
    return environment.get("CUDA_VISIBLE_DEVICES")


def image_expects_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this container should have a GPU: its image is for one, and it was not started
    without one on purpose.

    NVIDIA's base images set NVIDIA_VISIBLE_DEVICES; "none", "void" or blank hides all GPUs. Cog
    0.23 sets NVIDIA_DRIVER_CAPABILITIES in every image, and does not let cog.yaml set the other.
    """
    devices = environment.get("NVIDIA_VISIBLE_DEVICES")
    if devices is None:
        return "NVIDIA_DRIVER_CAPABILITIES" in environment
    return devices not in ("", "none", "void")


def billing_project(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the project that pays for requests to a bucket whose requesters pay.

    Raises SettingError if it cannot be a project's id or number.
    """
    project = _text(environment, "CLIP_BILLING_PROJECT")
    if project is not None and not re.fullmatch(r"[A-Za-z0-9.:-]{1,100}", project):
        raise SettingError(f"CLIP_BILLING_PROJECT is {project[:40]!r}; give the id of a project")
    return project


def _text(environment: Mapping[str, str], name: str) -> str | None:
    return environment.get(name, "").strip() or None


def _choice(environment: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str | None:
    value = _text(environment, name)
    if value is not None and value not in choices:
        *first, last = map(repr, choices)
        raise SettingError(
            f"{name} is {value!r}; use {', '.join(first)} or {last}, or leave it unset"
        )
    return value


def _number(
    environment: Mapping[str, str], name: str, unit: str, maximum: int = 10**12
) -> int | None:
    value = _text(environment, name)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and 1 <= int(value[:20]) <= maximum):
        raise SettingError(
            f"{name} is {value[:40]!r}; give a whole number ({unit}), from 1 to {maximum:,}"
        )
    return int(value)


def _header(environment: Mapping[str, str], name: str) -> str | None:
    value = _text(environment, name)
    if value is not None and not (value.isascii() and value.isprintable()):
        raise SettingError(f"{name} is {value!r}; use printable ASCII characters only")
    return value
