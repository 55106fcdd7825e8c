"""The whole service on this machine, visibly: see `scripts/demo`.

A Cloud Storage emulator, small weights published into it, the real Cog server pulling them, and
sentences and photographs embedded over HTTP.
"""

from __future__ import annotations

import base64
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from gcs_emulator import gcs_emulator
from local_server import ROOT, CogServer

SENTENCES = {
    "astronaut": "a portrait of an astronaut in an orange suit",
    "cat": "a close-up of a cat's face",
    "coffee": "a cup of coffee on a wooden table",
    "galaxies": "distant galaxies in a black sky",
    "photographer": "a man taking a picture with a camera on a tripod",
    "rocket": "a rocket lifting off at night",
}
MODEL = ROOT / "tests" / "tiny.json"


def step(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*command: str, **environment: str) -> None:
    """Run a script of this project, showing the command and its last line."""
    print("  $ " + " ".join(command))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    print("  " + done.stdout.strip().splitlines()[-1])


def data_uri(photo: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(photo.read_bytes()).decode()}"


def table(vectors: np.ndarray, rows: list[str], columns: list[str]) -> None:
    """Cosine similarity of the first vectors (rows) with the rest (columns)."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit[: len(rows)] @ unit[len(rows) :].T
    print(" " * 52 + "".join(f"{name:>14}" for name in columns))
    for name, values in zip(rows, similarity, strict=True):
        print(f"  {name:<50}" + "".join(f"{value:>14.3f}" for value in values))


def main() -> None:
    started = time.perf_counter()
    step("1  Cloud Storage: the fake-gcs-server emulator, with a bucket called models")
    with gcs_emulator("models") as url:
        emulator = {"STORAGE_EMULATOR_HOST": url}
        step("2  Publishing a small CLIP with random weights")
        run(
            "scripts/publish_weights.py",
            *("random:0", "gs://models/demo", "--model", str(MODEL.relative_to(ROOT))),
            **emulator,
        )
        step("3  The Cog server, with CLIP_WEIGHTS=gs://models/demo")
        begin = time.perf_counter()
        with CogServer({"CLIP_WEIGHTS": "gs://models/demo", **emulator}) as server:
            server.wait_ready()
            print(f"  READY after {time.perf_counter() - begin:.2f} s, of which")
            for line in re.findall(r"ready: .*", server.setup_log()):
                print("  " + line.removeprefix("ready: ").replace("; ", "\n  "))
            step(f"4  Six sentences and six photographs: POST {server.url}/predictions")
            photos = [ROOT / "examples" / f"{name}.jpg" for name in SENTENCES]
            inputs = [{"text": sentence} for sentence in SENTENCES.values()]
            inputs += [{"image": data_uri(photo)} for photo in photos]
            begin = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(len(inputs)) as pool:
                responses = list(pool.map(lambda each: server.predict(**each), inputs))
            seconds = time.perf_counter() - begin
            vectors = np.array([response["output"] for response in responses])
            print(f"  {len(responses)} vectors of {vectors.shape[1]} floats in {seconds:.2f} s")
            first = responses[0]
            print(f"  “{SENTENCES['astronaut']}”")
            print("    output   [" + ", ".join(f"{v:.4f}" for v in first["output"][:6]) + ", …]")
            print("    metrics  " + json.dumps(first["metrics"]))
        step("5  Cosine similarity, sentences × photographs")
        table(vectors, list(SENTENCES.values()), list(SENTENCES))
        print(
            "\n  The weights are random, so these numbers mean nothing: they show that the whole\n"
            "  way works. For real ones, publish OpenAI's release (see README, “Your own bucket”)."
        )
    print(f"\nDone in {time.perf_counter() - started:.1f} s; nothing is left running.")


if __name__ == "__main__":
    main()
