"""The whole service on this machine, visibly: see `scripts/demo`.

A Cloud Storage emulator, a small trained CLIP published into it, the real Cog server pulling it,
sentences and drawings embedded over HTTP, and what each sentence finds: in words and in a picture.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

import contact_sheet
from contact_sheet import Find, Row
from drawings import Drawing, held_out
from embedding_client import Client
from gcs_emulator import gcs_emulator
from local_server import ROOT, CogServer

# What people might ask for, and the drawing they would mean.
SENTENCES = {
    "a slice of pizza": "pizza",
    "a red sports car": "automobile",
    "the face of a cat": "cat face",
    "laughing until tears come": "face with tears of joy",
    "a rocket flying into space": "rocket",
    "a cup of hot coffee": "hot beverage",
    "the flag of Japan": "flag: Japan",
    "an electric guitar": "guitar",
    "a green heart": "green heart",
    "a birthday cake with candles": "birthday cake",
    "a snowman in winter": "snowman without snow",
    "a bouquet of flowers": "bouquet",
}
MODEL = ROOT / "demo_model"
ARCHITECTURE = ROOT / "scripts" / "training" / "emoji_clip.json"
PICTURE = ROOT / "demo-output" / "demo.png"
SHOWN = 6  # drawings for each sentence
EVERY = 10  # of the held-out drawings, beside those meant: enough to search in, and soon embedded


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


def embed_all(
    client: Client, drawings: Sequence[Drawing]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Vectors of length 1 of all sentences and all drawings; many requests at a time."""
    calls: list[Callable[[], npt.NDArray[np.float32]]] = []
    calls += [functools.partial(client.text, sentence) for sentence in SENTENCES]
    calls += [functools.partial(client.image_bytes, d.png(), "drawing.png") for d in drawings]
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        done = pool.map(lambda call: call(), calls)
        vectors = np.array(list(tqdm(done, "  embedding", len(calls), leave=False)))
    seconds = time.perf_counter() - begin
    print(f"  {len(calls)} vectors in {seconds:.1f} s: {len(calls) / seconds:.0f} a second")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[: len(SENTENCES)], vectors[len(SENTENCES) :]


def show(drawings: Sequence[Drawing], similarity: npt.NDArray[np.float32]) -> None:
    """The ranking in words, and in one picture. similarity: [sentences, drawings]."""
    names = [drawing.name for drawing in drawings]
    meant = [names.index(name) for name in SENTENCES.values()]
    rows = []
    for sentence, expected, scores in zip(SENTENCES, meant, similarity, strict=True):
        best = np.argsort(-scores)[:SHOWN]
        print(f"  {sentence:<30}" + ", ".join(f"{names[i]} {scores[i]:.2f}" for i in best[:4]))
        finds = [
            Find(drawings[i].picture, names[i], float(scores[i]), right=bool(i == expected))
            for i in best
        ]
        rows.append(Row(sentence, finds))
    picture = contact_sheet.below(
        contact_sheet.sheet(f"The best of {len(names)} drawings for each sentence", rows),
        contact_sheet.heat_map(
            "Each sentence with each of the drawings meant (framed above, where found)",
            similarity[:, meant],
            list(SENTENCES),
            [drawings[i].picture for i in meant],
        ),
    )
    PICTURE.parent.mkdir(exist_ok=True)
    picture.save(PICTURE)


def main() -> None:
    started = time.perf_counter()
    step("1  Cloud Storage: the fake-gcs-server emulator, with a bucket called models")
    with gcs_emulator("models") as url:
        emulator = {"STORAGE_EMULATOR_HOST": url}
        step("2  Publishing the demo's model: a small CLIP trained on emoji drawings (demo_model/)")
        [weights] = MODEL.glob("*.safetensors")
        run(
            "scripts/publish_weights.py",
            *(str(weights.relative_to(ROOT)), "gs://models/demo"),
            *("--model", str(ARCHITECTURE.relative_to(ROOT))),
            **emulator,
        )
        step("3  The Cog server, with CLIP_WEIGHTS=gs://models/demo")
        begin = time.perf_counter()
        with CogServer({"CLIP_WEIGHTS": "gs://models/demo", **emulator}) as server:
            server.wait_ready()
            print(f"  READY after {time.perf_counter() - begin:.2f} s, of which")
            for line in re.findall(r"ready: .*", server.setup_log()):
                print("  " + line.removeprefix("ready: ").replace("; ", "\n  "))
            drawings = [
                drawing
                for place, drawing in enumerate(held_out())
                if place % EVERY == 0 or drawing.name in SENTENCES.values()
            ]
            step(
                f"4  {len(SENTENCES)} sentences and {len(drawings)} drawings by a hand the model"
                f" has never seen (Twemoji)\n   POST {server.url}/predictions"
            )
            texts, images = embed_all(Client(server.url), drawings)
            first = server.predict(text=next(iter(SENTENCES)))
            print(f"  “{next(iter(SENTENCES))}”")
            print("    output   [" + ", ".join(f"{v:.4f}" for v in first["output"][:6]) + ", …]")
            print("    metrics  " + json.dumps(first["metrics"]))
        step("5  What each sentence finds, by cosine similarity")
        show(drawings, texts @ images.T)
        print(
            f"\n  To look at: {PICTURE.relative_to(ROOT)}\n"
            "\n  Frames mark the drawing meant. This model was trained on emoji alone: asked by\n"
            "  name, it has the right one of 1,914 drawings among its best five in more than half\n"
            "  of all cases (demo_model/README.md). For meaning to rely on, publish\n"
            "  OpenAI's release (see README, “Your own bucket”)."
        )
    print(f"\nDone in {time.perf_counter() - started:.1f} s; nothing is left running.")


if __name__ == "__main__":
    main()
