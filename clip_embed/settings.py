"""The environment variables of the service: read, validated and documented in one place.

A leaf: imports nothing of the package but its errors, so that any module may use it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from clip_embed.errors import SettingError

DEFAULT_MAX_IMAGE_PIXELS = 100_000_000


@dataclass(frozen=True)
class Setting:
    """One variable, as the README's table lists it. default: in words, empty if there is none."""

    name: str
    default: str


SETTINGS = (
    Setting("CLIP_WEIGHTS", ""),
    Setting("CLIP_WEIGHTS_CACHE", "no cache"),
    Setting("CLIP_DEVICE", "cuda if there is a GPU, else cpu"),
    Setting("CLIP_MAX_IMAGE_PIXELS", f"{DEFAULT_MAX_IMAGE_PIXELS:,}"),
    Setting("CLIP_FAST_JPEG", "0"),
    Setting("STORAGE_EMULATOR_HOST", "Cloud Storage itself"),
)
"""Every variable that the service reads. Cog's own, COG_MAX_CONCURRENCY, is read by Cog."""


@dataclass(frozen=True)
class Settings:
    """The validated settings.

    weights: where the model is published; `weights.pull` validates it. weights_cache: a directory.
    device: "cuda", "cpu", or None for the default. max_image_pixels: width × height.
    fast_jpeg: whether large photographs may be decoded inexactly (inputs/fast_jpeg.py).
    """

    weights: str | None = None
    weights_cache: str | None = None
    device: str | None = None
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
    fast_jpeg: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read and validate the variables. A blank variable counts as unset.

        Raises SettingError, which names the variable, its value and the values allowed.
        """
        return cls(
            weights=_text(environment, "CLIP_WEIGHTS"),
            weights_cache=_text(environment, "CLIP_WEIGHTS_CACHE"),
            device=_choice(environment, "CLIP_DEVICE", ("cuda", "cpu")),
            max_image_pixels=_pixels(environment, "CLIP_MAX_IMAGE_PIXELS"),
            fast_jpeg=_choice(environment, "CLIP_FAST_JPEG", ("0", "1")) == "1",
        )


def storage_emulator_url(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the URL of a Cloud Storage emulator, None without one.

    STORAGE_EMULATOR_HOST may lack the scheme, as for Google's own clients; http:// is then meant.
    """
    host = (_text(environment, "STORAGE_EMULATOR_HOST") or "").rstrip("/")
    if not host:
        return None
    return host if "://" in host else f"http://{host}"


def _text(environment: Mapping[str, str], name: str) -> str | None:
    return environment.get(name, "").strip() or None


def _choice(environment: Mapping[str, str], name: str, choices: tuple[str, str]) -> str | None:
    value = _text(environment, name)
    if value is not None and value not in choices:
        first, second = choices
        raise SettingError(f"{name} is {value!r}; use {first!r} or {second!r}, or leave it unset")
    return value


def _pixels(environment: Mapping[str, str], name: str) -> int:
    value = _text(environment, name)
    if value is None:
        return DEFAULT_MAX_IMAGE_PIXELS
    if not value.isdecimal() or int(value) < 1:
        raise SettingError(f"{name} is {value!r}; give a whole number of pixels")
    return int(value)
