"""Similar meanings land close together: the demo's model, through the real service, on drawings by
a hand it has never seen.

What these hold is the way from words and pixels to a ranking: a tokenizer, a normalisation or a
projection that is wrong still gives 768 floats, and finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from conftest import ROOT
from drawings import Drawing, held_out
from embedding_client import Client
from local_server import CogServer
from training.retrieval import recall

# The model card's figures (demo_model/README.md), less about a tenth.
FLOOR_AT_1, FLOOR_AT_5 = 0.30, 0.55

Vectors = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A real server with the demo's model."""
    with CogServer({"CLIP_WEIGHTS": str(ROOT / "demo_model")}) as server:
        server.wait_ready()
        yield Client(server.url)


def in_parallel(call: Callable[..., Vectors], *inputs: Iterable[str | bytes]) -> Vectors:
    """The vectors of all inputs, divided by their lengths."""
    with ThreadPoolExecutor(16) as pool:
        vectors = np.array(list(pool.map(call, *inputs)))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return held_out()


@pytest.fixture(scope="module")
def names(client: Client, drawings: list[Drawing]) -> Vectors:
    """Every drawing's name, embedded."""
    return in_parallel(client.text, [drawing.name for drawing in drawings])


@pytest.fixture(scope="module")
def images(client: Client, drawings: list[Drawing]) -> Vectors:
    """Every drawing, embedded."""
    files = (drawing.png() for drawing in drawings)
    return in_parallel(client.image_bytes, files, ["drawing.png"] * len(drawings))


def test_names_find_their_drawings(names: Vectors, images: Vectors) -> None:
    """Among all 1,914 drawings of a style that was never trained on."""
    found = recall(names, images)
    assert found.at_1 >= FLOOR_AT_1, found
    assert found.at_5 >= FLOOR_AT_5, found


def test_drawings_find_their_names(names: Vectors, images: Vectors) -> None:
    """The other way round, among as many names."""
    found = recall(images, names)
    assert found.at_1 >= FLOOR_AT_1, found
    assert found.at_5 >= FLOOR_AT_5, found


@pytest.mark.parametrize("thing", ["heart", "circle", "square"])
def test_colours_are_told_apart(
    thing: str, drawings: list[Drawing], names: Vectors, images: Vectors
) -> None:
    """Of one thing in many colours, most are found by their colour's name: red is not blue."""
    colours = ["red", "orange", "yellow", "green", "blue", "purple", "brown"]
    colours += [] if thing == "square" else ["black", "white"]
    which = [[d.name for d in drawings].index(f"{colour} {thing}") for colour in colours]
    similarity = names[which] @ images[which].T
    assert (similarity.argmax(1) == np.arange(len(colours))).mean() >= 0.7, similarity.round(2)


def test_tricolours_are_told_apart(
    drawings: list[Drawing], names: Vectors, images: Vectors
) -> None:
    """Flags that differ in their colours alone, or in the order of them."""
    countries = ("France", "Italy", "Ireland", "Belgium", "Romania", "Chad", "Mali", "Guinea")
    which = [[d.name for d in drawings].index(f"flag: {country}") for country in countries]
    similarity = names[which] @ images[which].T
    assert (similarity.argmax(1) == np.arange(len(countries))).mean() >= 0.6, similarity.round(2)


def test_sentences_find_what_they_mean(
    client: Client, drawings: list[Drawing], images: Vectors
) -> None:
    """Words that are nobody's name: the drawing meant is among the best five of 1,914."""
    meant = {
        "a slice of pizza": "pizza",
        "the face of a cat": "cat face",
        "a rocket flying into space": "rocket",
        "a cup of hot coffee": "hot beverage",
        "an electric guitar": "guitar",
        "a birthday cake with candles": "birthday cake",
    }
    best = (-(in_parallel(client.text, meant) @ images.T)).argsort(1)[:, :5]
    found = [
        expected in [drawings[i].name for i in row]
        for expected, row in zip(meant.values(), best, strict=True)
    ]
    assert sum(found) >= len(meant) - 1, dict(zip(meant, found, strict=True))
