"""Environment variables are read and validated in one place."""

from __future__ import annotations

import re

import pytest

from clip_embed.errors import SettingError
from clip_embed.settings import SETTINGS, Setting, Settings, storage_emulator_url
from tests.helpers.paths import ROOT


def test_settings_have_defaults() -> None:
    """An empty environment gives the documented defaults."""
    assert Settings.from_environment({}) == Settings(
        weights=None,
        weights_cache=None,
        device=None,
        max_image_pixels=120_000_000,
        max_image_bytes=100_000_000,
        image_urls="public",
        image_url_seconds=30,
        user_agent="clip-embed/0.1 (image embedding service)",
        fast_jpeg=False,
        metrics_port=None,
        max_concurrency=64,
    )


def test_settings_are_read_from_the_environment() -> None:
    environment = {
        "CLIP_WEIGHTS": " gs://bucket/clip ",
        "CLIP_WEIGHTS_CACHE": "/cache",
        "CLIP_WEIGHTS_CACHE_BYTES": "500",
        "CLIP_BILLING_PROJECT": "shop-1",
        "CLIP_DEVICE": "cpu",
        "CLIP_MAX_IMAGE_PIXELS": "1000",
        "CLIP_MAX_IMAGE_BYTES": "2000",
        "CLIP_IMAGE_URLS": "none",
        "CLIP_IMAGE_URL_SECONDS": "3",
        "CLIP_USER_AGENT": "shop/1",
        "CLIP_FAST_JPEG": "1",
        "CLIP_METRICS_PORT": "9090",
        "COG_MAX_CONCURRENCY": "8",
    }
    assert Settings.from_environment(environment) == Settings(
        weights="gs://bucket/clip",
        weights_cache="/cache",
        weights_cache_bytes=500,
        billing_project="shop-1",
        device="cpu",
        max_image_pixels=1000,
        max_image_bytes=2000,
        image_urls="none",
        image_url_seconds=3,
        user_agent="shop/1",
        fast_jpeg=True,
        metrics_port=9090,
        max_concurrency=8,
    )


def test_default_concurrency_is_that_of_the_image() -> None:
    """Cog reads it from `@concurrent` in predict.py."""
    [limit] = re.findall(r"@concurrent\(max=(\d+)\)", (ROOT / "predict.py").read_text())
    assert int(limit) == Settings().max_concurrency


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_blank_variable_counts_as_unset(setting: Setting) -> None:
    assert Settings.from_environment({setting.name: "  "}) == Settings()
    assert storage_emulator_url({setting.name: "  "}) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CLIP_DEVICE", "gpu", "CLIP_DEVICE is 'gpu'; use 'cuda' or 'cpu', or leave it unset"),
        ("CLIP_FAST_JPEG", "yes", "CLIP_FAST_JPEG is 'yes'; use '0' or '1', or leave it unset"),
        *(
            ("CLIP_MAX_IMAGE_PIXELS", value, f"is '{value[:40]}'; give a whole number (pixels),")
            for value in ("0", "-1", "1e6", "many", "9" * 5000, "٣")
        ),
        ("CLIP_METRICS_PORT", "70000", "is '70000'; give a whole number (port), from 1 to 65,535"),
        ("CLIP_IMAGE_URLS", "all", "is 'all'; use 'public', 'any' or 'none', or leave it unset"),
        ("CLIP_BILLING_PROJECT", "a b", "CLIP_BILLING_PROJECT is 'a b'; give the id of a project"),
        ("CLIP_USER_AGENT", "a\r\nb", "use printable ASCII characters only"),
    ],
)
def test_invalid_value_is_rejected(name: str, value: str, message: str) -> None:
    """The message names the variable, its value and the values allowed."""
    with pytest.raises(SettingError, match=re.escape(message)):
        Settings.from_environment({name: value})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1:4443", "http://127.0.0.1:4443"),
        ("http://127.0.0.1:4443/", "http://127.0.0.1:4443"),
        ("https://emulator", "https://emulator"),
    ],
)
def test_emulator_host_may_lack_the_scheme(host: str, url: str) -> None:
    assert storage_emulator_url({"STORAGE_EMULATOR_HOST": host}) == url


def test_no_other_module_reads_the_environment() -> None:
    """os.environ appears in settings.py, and where a workaround removes a variable of Cog's."""
    files = [ROOT / "predict.py", ROOT / "weights.py", *(ROOT / "clip_embed").rglob("*.py")]
    readers = {
        str(path.relative_to(ROOT))
        for path in files
        if re.search(r"os\.(environ|getenv)", path.read_text())
    }
    assert readers == {"clip_embed/settings.py", "clip_embed/cog_workarounds/worker.py"}


def test_every_variable_is_listed_in_settings() -> None:
    """A variable that settings.py reads, and SETTINGS lacks, would be missing from the README."""
    source = (ROOT / "clip_embed" / "settings.py").read_text()
    read = set(re.findall(r'\(environment, "(\w+)"', source))
    assert read - {"SSL_CERT_FILE"} == {setting.name for setting in SETTINGS}
