"""Download with curl what `weights.pull` downloads: the same ranges, as many at a time."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from clip_embed.checkpoint.manifest import BLOCK_SIZE


class Curl:
    """Downloads every block of every shard. shards: bytes by URL. config: a file to write."""

    def __init__(self, shards: Mapping[str, int], config: Path) -> None:
        self._shards = shards
        self._config = config

    def download(self, streams: int, directory: Path | None = None) -> float:
        """Return MB/s. directory: receives the blocks; by default they are discarded."""
        self._config.write_text(self._blocks(directory))
        command = ["curl", "--silent", "--fail", "--parallel", "--parallel-immediate"]
        command += ["--parallel-max", str(streams), "--config", str(self._config)]
        begin = time.perf_counter()
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return sum(self._shards.values()) / 1e6 / (time.perf_counter() - begin)

    def _blocks(self, directory: Path | None) -> str:
        """Return curl's configuration: one transfer per block."""
        transfers = []
        for url, size in self._shards.items():
            for start in range(0, size, BLOCK_SIZE):
                end = min(start + BLOCK_SIZE, size) - 1
                output = directory / str(len(transfers)) if directory else os.devnull
                transfers.append(f'url = "{url}"\nrange = "{start}-{end}"\noutput = "{output}"\n')
        return "next\n".join(transfers)
