"""Send requests over many connections, each the next one after its response; no packages.

    python load_client.py PORT CONNECTIONS SECONDS BODIES    BODIES: a file, one JSON per line

Prints one JSON object: see `Load`. Runs as a process of its own, or several, so that neither the
measuring process nor its interpreter lock is the limit.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAUSE = 0.005
"""Seconds after a 409: the server is at its limit of requests in flight."""


@dataclass
class Load:
    """What one process has seen. seconds: of each request with status 200 that succeeded.

    refused: responses with status 409. wrong: other statuses, failed predictions, lost connections.
    metrics: of each of these. elapsed: from the first request to the last response.
    """

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    elapsed: float = 0.0


async def load(port: int, connections: int, seconds: float, bodies: list[bytes]) -> Load:
    """Load the server on this machine's `port` for `seconds`."""
    found = Load()
    begin = time.perf_counter()
    await asyncio.gather(
        *(
            # Each connection begins with another body.
            _send_requests(port, begin + seconds, bodies[number:] + bodies[:number], found)
            for number in range(connections)
        )
    )
    found.elapsed = time.perf_counter() - begin
    return found


async def _send_requests(port: int, end: float, bodies: list[bytes], found: Load) -> None:
    requests = itertools.cycle([_request(port, body) for body in bodies])
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        while time.perf_counter() < end:
            begin = time.perf_counter()
            writer.write(next(requests))
            status, body = await _read_response(reader)
            _count(found, status, body, time.perf_counter() - begin)
            if status == 409:
                await asyncio.sleep(PAUSE)
    except (OSError, EOFError, ValueError) as error:
        found.wrong.append(repr(error))
    finally:
        if writer is not None:
            writer.close()


def _count(found: Load, status: int, body: bytes, seconds: float) -> None:
    if status == 409:
        found.refused += 1
    elif status != 200 or b'"status":"succeeded"' not in body.replace(b" ", b""):
        found.wrong.append(f"status {status}: {body[:200].decode(errors='replace')}")
    else:
        found.seconds.append(seconds)
        found.metrics.append(json.loads(body).get("metrics", {}))


def _request(port: int, body: bytes) -> bytes:
    head = (
        f"POST /predictions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json"
        f"\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _read_response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return status and body. Raises ValueError without a Content-Length, EOFError at an end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    lines = head.split("\r\n")
    lengths = [line.split(":", 1)[1] for line in lines if line.startswith("content-length:")]
    if not lengths:
        raise ValueError(f"a response without Content-Length: {lines[0]}")
    return int(lines[0].split()[1]), await reader.readexactly(int(lengths[0]))


async def serve_constant(body: bytes) -> asyncio.Server:
    """Answer every request at once with `body`, to measure the client itself."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                await _read_request(reader)
            except EOFError:
                writer.close()
                return
            writer.write(answer)

    return await asyncio.start_server(answer_all, "127.0.0.1", 0, limit=2**24)


async def _read_request(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    [length] = [line.split(":")[1] for line in head.split("\r\n") if "Content-Length" in line]
    await reader.readexactly(int(length))


def main() -> None:
    port, connections, seconds, bodies = sys.argv[1:]
    lines = Path(bodies).read_bytes().splitlines()
    found = asyncio.run(load(int(port), int(connections), float(seconds), lines))
    print(json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    main()
