"""Fill an emulated bucket with full-size ViT-L/14, as published and as the peers read it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from clip_embed.model.config import ClipConfig
from scripts.benchmarks.peers import convert
from scripts.lib.cog_server import CACHE
from scripts.lib.gcs_emulator import gcs_emulator
from scripts.lib.storage import open_storage
from scripts.publishing import DEFAULT_MODEL
from scripts.publishing.model import Model, read_model
from scripts.publishing.publish import publish

PREFIX = "gs://models/ours"


@contextlib.contextmanager
def filled_bucket() -> Iterator[str]:
    """Run the emulator with `random:0` in it; yield its URL, also in STORAGE_EMULATOR_HOST."""
    with gcs_emulator("models") as url:
        os.environ["STORAGE_EMULATOR_HOST"] = url
        try:
            model = read_model("random:0", DEFAULT_MODEL)
            publish(model, open_storage(PREFIX))
            _upload_for_peers(model)
            del model
            yield url
        finally:
            del os.environ["STORAGE_EMULATOR_HOST"]


def _upload_for_peers(model: Model) -> None:
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        for_open_clip, for_transformers = (
            Path(directory) / name for name in ("open_clip", "transformers")
        )
        for_open_clip.mkdir()
        convert.write_open_clip(for_open_clip, model.tensors)
        for_transformers.mkdir()
        config = ClipConfig.from_open_clip(model.config["model_cfg"])
        convert.write_transformers(for_transformers, config, model.tensors)
        for folder in (for_open_clip, for_transformers):
            bucket = open_storage(f"gs://models/{folder.name}")
            for path in sorted(folder.iterdir()):
                bucket.write(path.name, path.read_bytes())
