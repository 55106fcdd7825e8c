"""Turn what the user typed and dropped into one query vector, with few requests to the service."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread
import numpy as np

from scripts.lib.embedding_client import Client, ServiceError
from scripts.search_page.guard import PageError
from scripts.search_page.ranking import Vector

# How much of the sentence in "but not" is subtracted from the query, both of length 1. With more,
# the result is the opposite of that sentence rather than an answer to the query.
WITHOUT_WEIGHT = 0.5
# The client itself retries for 120 s, for the sake of an index. Somebody waits here.
SERVICE_SECONDS = 15.0
IN_FLIGHT = 16  # requests to the service
CACHED_VECTORS = 2000  # 6 MB at 768 dimensions


class Embedder:
    """Vectors of length 1 of texts and pictures, the latest ones in memory. For one event loop."""

    def __init__(self, client: Client, width: int) -> None:
        self._client = client
        self._width = width
        self._cache: OrderedDict[str, Vector] = OrderedDict()
        self._limiter = anyio.CapacityLimiter(IN_FLIGHT)

    async def texts(self, texts: Sequence[str]) -> Vector:
        """Return float32 [T, D]. Raises RefusedError, ServiceError."""
        return np.array(await asyncio.gather(*(self._text(text) for text in texts)))

    async def add_picture(self, data: bytes) -> str:
        """Embed a picture, and return its name for `picture`. Raises RefusedError, ServiceError."""
        name = hashlib.sha256(data).hexdigest()
        await self._vector(name, lambda: self._client.image_bytes(data, "picture"))
        return name

    def picture(self, name: str) -> Vector:
        """Return the vector of a picture that was added. Raises PageError if it was long ago."""
        if name not in self._cache:
            raise PageError(410, "the server no longer has this picture; send it again")
        self._cache.move_to_end(name)
        return self._cache[name]

    async def _text(self, text: str) -> Vector:
        return await self._vector(f"text {text}", lambda: self._client.text(text))

    async def _vector(self, key: str, embed: Callable[[], Vector]) -> Vector:
        if key not in self._cache:
            vector = await self._from_service(embed)
            self._cache[key] = unit(vector)
            while len(self._cache) > CACHED_VECTORS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    async def _from_service(self, embed: Callable[[], Vector]) -> Vector:
        try:
            with anyio.fail_after(SERVICE_SECONDS):
                vector = await anyio.to_thread.run_sync(
                    embed, abandon_on_cancel=True, limiter=self._limiter
                )
        except TimeoutError:
            raise ServiceError(f"no answer in {SERVICE_SECONDS:.0f} s") from None
        if len(vector) != self._width:
            raise ServiceError(
                f"it returns vectors of {len(vector)} numbers now, and the index has {self._width}:"
                " index the pictures again with this model"
            )
        return vector


def combine(
    text: Vector | None, picture: Vector | None, picture_weight: float, without: Vector | None
) -> Vector | None:
    """Return the query of length 1, None if neither text nor picture is given.

    All are of length 1. picture_weight: 0 to 1; counts if both are given.
    """
    if text is not None and picture is not None:
        query = unit((1 - picture_weight) * text + picture_weight * picture)
    elif text is not None:
        query = text
    elif picture is not None:
        query = picture
    else:
        return None
    return query if without is None else unit(query - WITHOUT_WEIGHT * without)


def unit(vector: Vector) -> Vector:
    """Return `vector` divided by its length."""
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
