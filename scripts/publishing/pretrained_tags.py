"""Find pretrained tags of open_clip, such as openai and laion2b_s32b_b82k, and their files.

open_clip takes seconds to import, so only the functions that need it do.
"""

from __future__ import annotations

import difflib
import shutil
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.publishing import DEFAULT_MODEL, preprocessing
from scripts.publishing.architecture import (
    QUICK_GELU_SUFFIX,
    WantedModel,
    named_configs,
    parse_config,
)
from scripts.publishing.errors import PublishError, redact, show
from scripts.publishing.hub import HubRepository, check_endpoint
from scripts.publishing.statement import Statement

_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class PretrainedTag:
    """A tag of one architecture. entry: what open_clip's list of pretrained models holds."""

    tag: str
    model: str
    entry: Mapping[str, Any]

    def statement(self, wanted: WantedModel | None) -> Statement:
        """Return what open_clip says of the tag. Raises PublishError if it cannot be published."""
        by = f"open_clip's tag {self.tag} of {self.model}"
        model_cfg = named_configs()[self.model] if wanted is None else wanted.model_cfg
        parse_config(model_cfg, by)
        return Statement(
            by,
            model_cfg,
            bool(self.entry.get("quick_gelu")),
            by,
            preprocessing.from_open_clip(self.entry, by),
        )

    def download(self) -> Path:
        """Return the path of the checkpoint, from a cache or downloaded. Raises PublishError."""
        if "file" in self.entry:
            return Path(self.entry["file"])
        if location := self.entry.get("hf_hub"):
            organization, name, *rest = location.split("/")
            repository = HubRepository(f"{organization}/{name}", self.tag)
            names = [rest[0]] if rest and rest[0] else list(_HUB_FILES)
            for file in names:
                if path := repository.file(file):
                    return path
            raise PublishError(f"{self.tag}: {organization}/{name} has no {' or '.join(names)}")
        return self._download_url(self.entry["url"])

    def _download_url(self, url: str) -> Path:
        from open_clip import pretrained

        try:
            return Path(pretrained.download_pretrained_from_url(url))
        except (urllib.error.URLError, RuntimeError, OSError) as error:
            free = shutil.disk_usage(Path.home()).free
            raise PublishError(
                f"{self.tag}: its file cannot be downloaded from {url.split('/')[2]}"
                f" ({type(error).__name__}; {free / 1e9:,.1f} GB are free here); check the network"
                " and the space in ~/.cache/clip, and run the same command again"
            ) from error


def find_tag(tag: str, wanted: WantedModel | None) -> PretrainedTag:
    """Find `tag` among those of the wanted architecture, by default of any.

    Raises PublishError, which lists the tags that there are.
    """
    check_endpoint(redact(tag))
    from open_clip import pretrained

    clean = tag.lower().replace("-", "_")
    if wanted is not None:
        return _find_of_model(tag, clean, wanted.name)
    default = DEFAULT_MODEL.removesuffix(QUICK_GELU_SUFFIX)
    models = {
        name.removesuffix(QUICK_GELU_SUFFIX)
        for name in pretrained.list_pretrained_models_by_tag(clean)
    }
    if default in models or not models:
        return _find_of_model(tag, clean, default)
    if len(models) == 1:
        return _find_of_model(tag, clean, models.pop())
    raise PublishError(
        f"{tag}: open_clip has this tag for {', '.join(sorted(models)[:8])}; choose one with"
        " --model"
    )


def _find_of_model(tag: str, clean: str, model: str) -> PretrainedTag:
    from open_clip import pretrained

    base = model.removesuffix(QUICK_GELU_SUFFIX)
    # open_clip lists some tags under the name with the suffix, some without, many under both.
    entries: dict[str, PretrainedTag] = {}
    for name in (base, f"{base}{QUICK_GELU_SUFFIX}"):
        for known in pretrained.list_pretrained_tags_by_model(name):
            entry = pretrained.get_pretrained_cfg(name, known)
            entries.setdefault(known, PretrainedTag(known, base, entry))
    if clean in entries:
        return entries[clean]
    close = difflib.get_close_matches(clean, entries, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise PublishError(
        f"there is no file or directory {show(redact(tag))}, and open_clip has no pretrained tag of"
        f" {base} with this name{hint} (known: {', '.join(entries) or 'none'})"
    )
