"""Measure what surrounds the network in a prediction: predict_time, which Replicate bills, without
the network's time.

The model is demo_model on the CPU, whose network takes a few milliseconds. One client sends one
text at a time over one connection. A server whose predictor does nothing shows which part is Cog's
own.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence

import numpy as np

from scripts.benchmarks.captions import captions
from scripts.benchmarks.report import Figure, Section
from scripts.lib.cog_server import ROOT, CogServer

REQUESTS = 100  # per run
REQUESTS_PER_TURN = 10
"""Requests to one server before the other's turn: a machine's speed changes within seconds."""

EMPTY = f"{ROOT / 'scripts' / 'benchmarks' / 'peers' / 'empty_predict.py'}:Predictor"

PARTS = {
    "wall clock of the client": lambda row: row["wall"],
    "predict_time": lambda row: row["predict_time"],
    "encode_ms: the network": lambda row: row["encode_ms"],
    "predict_time − encode_ms": lambda row: row["predict_time"] - row["encode_ms"],
    "of which prepare_ms: the tokenizer": lambda row: row["prepare_ms"],
    "of which queue_ms": lambda row: row["queue_ms"],
    "wall clock − encode_ms": lambda row: row["wall"] - row["encode_ms"],
}
"""Name → milliseconds of one prediction of the service."""

EMPTY_PARTS = {
    "a predictor that does nothing, predict_time": lambda row: row["predict_time"],
    "a predictor that does nothing, wall clock": lambda row: row["wall"],
}


class _Connection:
    """One connection to a server, kept open."""

    def __init__(self, server: CogServer) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", server.port)

    def predict(self, text: str) -> dict[str, float]:
        """Return the milliseconds of one prediction: "wall", and Cog's metrics."""
        body = json.dumps({"input": {"text": text}})
        begin = time.perf_counter()
        self._http.request("POST", "/predictions", body, {"Content-Type": "application/json"})
        answer = self._http.getresponse().read()
        wall = time.perf_counter() - begin
        prediction = json.loads(answer)
        if prediction["status"] != "succeeded":
            raise RuntimeError(prediction["error"])
        metrics = prediction["metrics"]
        return {**metrics, "wall": 1e3 * wall, "predict_time": 1e3 * metrics["predict_time"]}


def run(runs: int) -> list[Section]:
    """Run `bench.py overhead`."""
    weights = {"CLIP_WEIGHTS": str(ROOT / "demo_model"), "CLIP_DEVICE": "cpu"}
    with CogServer(weights) as ours, CogServer({}, schema=None, predictor=EMPTY) as empty:
        ours.wait_ready()
        empty.wait_ready()
        connections = [_Connection(ours), _Connection(empty)]
        measured = [_measure(connections) for _ in range(runs + 1)][1:]  # the first warms up
    figures = [
        Figure(
            name, tuple(float(np.median([part(row) for row in rows[i]])) for rows in measured), "ms"
        )
        for i, parts in enumerate((PARTS, EMPTY_PARTS))
        for name, part in parts.items()
    ]
    return [Section(_table(figures), figures)]


def _measure(connections: Sequence[_Connection]) -> list[list[dict[str, float]]]:
    """Return REQUESTS predictions of each connection, in turn."""
    rows: list[list[dict[str, float]]] = [[] for _ in connections]
    texts = captions(REQUESTS)
    for begin in range(0, REQUESTS, REQUESTS_PER_TURN):
        for connection, collected in zip(connections, rows, strict=True):
            collected += [
                connection.predict(text) for text in texts[begin : begin + REQUESTS_PER_TURN]
            ]
    return rows


def _table(figures: Sequence[Figure]) -> str:
    rows = [
        f"| {figure.name} | {figure.median:.2f} |"
        f" {min(figure.values):.2f} – {max(figure.values):.2f} |"
        for figure in figures
    ]
    title = f"one text at a time, medians of {REQUESTS}"
    return "\n".join([f"| {title} | median ms | range |", "|---|---|---|", *rows])
