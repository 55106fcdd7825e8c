"""An emulated bucket with full-size ViT-L/14 in it, in our form and in the peers'."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

import publish_weights
from benchmarks.peers import convert
from clip_embed.config import ClipConfig
from gcs_emulator import gcs_emulator
from local_server import CACHE

PREFIX = "gs://models/ours"


@contextlib.contextmanager
def filled_bucket(peers: bool) -> Iterator[str]:
    """The emulator's URL, also in STORAGE_EMULATOR_HOST; `gs://models` holds `random:0`."""
    with gcs_emulator("models") as url:
        os.environ["STORAGE_EMULATOR_HOST"] = url
        try:
            model = publish_weights.read_model("random:0", publish_weights.DEFAULT_MODEL)
            publish_weights.publish(model, publish_weights.Bucket(PREFIX))
            if peers:
                _upload_peers(model)
            del model
            yield url
        finally:
            del os.environ["STORAGE_EMULATOR_HOST"]


def _upload_peers(model: publish_weights.Model) -> None:
    client = storage.Client(project="emulator", credentials=AnonymousCredentials())
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        folders = {name: Path(directory) / name for name in ("open_clip", "transformers")}
        for folder in folders.values():
            folder.mkdir()
        convert.write_open_clip(folders["open_clip"], model.tensors)
        config = ClipConfig.from_open_clip(model.config["model_cfg"])
        convert.write_transformers(folders["transformers"], config, model.tensors)
        for name, folder in folders.items():
            for path in sorted(folder.iterdir()):
                blob = client.bucket("models").blob(f"{name}/{path.name}")
                blob.upload_from_filename(path)
