"""Define faults of a web server, for `RangeServer`."""

from __future__ import annotations

import dataclasses

from tests.helpers.published_model import BLOCK
from tests.helpers.range_server import Answer, Fault, Hangup, Request


def at(name: str, fault: Fault, *, block: int = 0, times: float = float("inf")) -> Fault:
    """Apply `fault` to the first `times` requests for one block of the file `name`."""

    def chosen(request: Request, answer: Answer) -> Answer:
        start = request.range[0] if request.range else 0
        hit = request.name == name and start == block * BLOCK and request.earlier < times
        return fault(request, answer) if hit else answer

    return chosen


def status(code: int) -> Fault:
    """Answer with an HTTP status."""
    return lambda request, answer: Answer(code, b"no")


def hang_up(request: Request, answer: Answer) -> Answer:
    """Close the connection without an answer."""
    raise Hangup


def flip_a_bit(request: Request, answer: Answer) -> Answer:
    """Change one bit in the middle of the body."""
    assert isinstance(answer.body, bytes)
    damaged = bytearray(answer.body)
    damaged[len(damaged) // 2] ^= 16
    return dataclasses.replace(answer, body=bytes(damaged))


def cut_short(request: Request, answer: Answer) -> Answer:
    """Send half of the body and close the connection."""
    assert isinstance(answer.body, bytes)
    length = {"Content-Length": str(len(answer.body))}
    half = answer.body[: len(answer.body) // 2]
    return dataclasses.replace(answer, body=half, headers={**answer.headers, **length})


def send_all(request: Request, answer: Answer) -> Answer:
    """Answer with status 200, like a server without ranges. The body is not read."""
    headers = {key: value for key, value in answer.headers.items() if key != "Content-Range"}
    return dataclasses.replace(answer, status=200, headers=headers)


def too_few(request: Request, answer: Answer) -> Answer:
    """Send a well-formed answer with fewer bytes than requested."""
    assert request.range
    assert isinstance(answer.body, bytes)
    start = request.range[0]
    shorter = {"Content-Range": f"bytes {start}-{start + 9}/{10**9}"}
    return dataclasses.replace(answer, body=answer.body[:10], headers={**answer.headers, **shorter})
