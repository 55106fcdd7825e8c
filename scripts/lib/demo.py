"""Show the whole service on this machine: the body of scripts/demo."""

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

from scripts.lib import contact_sheet
from scripts.lib.cog_server import ROOT, CogServer
from scripts.lib.contact_sheet import Match, ResultRow
from scripts.lib.drawings import Drawing, held_out
from scripts.lib.embedding_client import Client
from scripts.lib.gcs_emulator import gcs_emulator

# Queries that people might write, and the name of the drawing that is the right answer.
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
MATCHES_DRAWN = 6  # per sentence, in the picture
MATCHES_PRINTED = 4  # per sentence
# Every tenth held-out drawing is used, beside the right answers: all would take a minute.
DRAWINGS_STEP = 10
CONCURRENCY = 16  # requests


def print_step(text: str) -> None:
    """Print a headline, in bold on a terminal."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*command: str, **environment: str) -> None:
    """Run a script of this project; print the command and the last line of its output."""
    print("  $ " + " ".join(command))
    completed = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if completed.returncode:
        raise SystemExit(completed.stderr)
    print("  " + completed.stdout.strip().splitlines()[-1])


def chosen_drawings() -> list[Drawing]:
    """Return the 203 drawings in which the demo searches."""
    return [
        drawing
        for number, drawing in enumerate(held_out())
        if number % DRAWINGS_STEP == 0 or drawing.name in SENTENCES.values()
    ]


def embed_all(
    client: Client, drawings: Sequence[Drawing]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Embed all sentences and drawings with concurrent requests.

    Returns vectors of length 1: float32 [sentences, D] and [drawings, D].
    """
    calls: list[Callable[[], npt.NDArray[np.float32]]] = []
    calls += [functools.partial(client.text, sentence) for sentence in SENTENCES]
    calls += [functools.partial(client.image_bytes, d.png(), "drawing.png") for d in drawings]
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(CONCURRENCY) as pool:
        results = pool.map(lambda call: call(), calls)
        vectors = np.array(list(tqdm(results, "  embedding", len(calls), leave=False)))
    seconds = time.perf_counter() - begin
    print(f"  {len(calls)} embeddings in {seconds:.1f} s ({len(calls) / seconds:.0f}/s)")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[: len(SENTENCES)], vectors[len(SENTENCES) :]


def show_matches(drawings: Sequence[Drawing], similarity: npt.NDArray[np.float32]) -> None:
    """Print the best matches and draw them in PICTURE. similarity: [sentences, drawings].

    A check mark stands before a sentence whose first match is the right answer, else its rank.
    """
    names = [drawing.name for drawing in drawings]
    answers = [names.index(name) for name in SENTENCES.values()]
    rows, found_first = [], 0
    for sentence, answer, scores in zip(SENTENCES, answers, similarity, strict=True):
        best = np.argsort(-scores)
        rank = int(np.flatnonzero(best == answer)[0]) + 1
        found_first += rank == 1
        mark = "✓" if rank == 1 else str(rank)
        printed = (f"{names[i]} {scores[i]:.2f}" for i in best[:MATCHES_PRINTED])
        print(f"  {mark:>3} {sentence:<30}" + ", ".join(printed))
        matches = [
            Match(drawings[i].picture, names[i], float(scores[i]), expected=bool(i == answer))
            for i in best[:MATCHES_DRAWN]
        ]
        rows.append(ResultRow(sentence, matches))
    print(f"\n  ✓ the first match is the right one: {found_first} of {len(SENTENCES)} sentences")
    picture = contact_sheet.stack(
        contact_sheet.draw_results(f"Best matches of {len(names)} drawings per sentence", rows),
        contact_sheet.draw_heat_map(
            "Cosine similarity of each sentence and each right answer",
            similarity[:, answers],
            list(SENTENCES),
            [drawings[i].picture for i in answers],
        ),
    )
    PICTURE.parent.mkdir(exist_ok=True)
    picture.save(PICTURE)


def run_demo() -> None:
    """Run all steps of the demo, and print what happens."""
    started = time.perf_counter()
    print_step("1  Start Cloud Storage: the fake-gcs-server emulator, with a bucket named models")
    with gcs_emulator("models") as url:
        emulator = {"STORAGE_EMULATOR_HOST": url}
        print_step("2  Publish the model: a small CLIP trained on emoji drawings (demo_model/)")
        [weights] = MODEL.glob("*.safetensors")
        run(
            "scripts/publish_weights.py",
            *(str(weights.relative_to(ROOT)), "gs://models/demo"),
            *("--model", str(ARCHITECTURE.relative_to(ROOT))),
            **emulator,
        )
        print_step("3  Start the Cog server with CLIP_WEIGHTS=gs://models/demo")
        begin = time.perf_counter()
        with CogServer({"CLIP_WEIGHTS": "gs://models/demo", **emulator}) as server:
            server.wait_ready()
            print(f"  READY after {time.perf_counter() - begin:.2f} s:")
            for line in re.findall(r"ready: .*", server.setup_log()):
                print("  " + line.removeprefix("ready: ").replace("; ", "\n  "))
            drawings = chosen_drawings()
            print_step(
                f"4  Embed {len(SENTENCES)} sentences and {len(drawings)} drawings in a style the"
                f" model was not trained on (Twemoji)\n   POST {server.url}/predictions"
            )
            texts, images = embed_all(Client(server.url), drawings)
            sentence = next(iter(SENTENCES))
            response = server.predict(text=sentence)
            print(f"  “{sentence}”")
            print("    output   [" + ", ".join(f"{v:.4f}" for v in response["output"][:6]) + ", …]")
            print("    metrics  " + json.dumps(response["metrics"]))
        print_step("5  Best matches per sentence, with cosine similarity")
        show_matches(drawings, texts @ images.T)
        print(
            f"  Picture: {PICTURE.relative_to(ROOT)}\n"
            "\n  This small model was trained on emoji only, in other styles than this. With a\n"
            "  drawing's name as the query, the right one of 1,914 drawings is first in five of\n"
            "  six cases (demo_model/README.md). For real use publish OpenAI's CLIP: see\n"
            "  “Weights” in README.md."
        )
    print(f"\nDone in {time.perf_counter() - started:.1f} s; nothing is left running.")
    print("Search all drawings in the browser: scripts/demo --page --open")
