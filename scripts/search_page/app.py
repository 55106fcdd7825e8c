"""Answer the page's requests: one class with a method for each address."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from scripts.lib import embedding_client
from scripts.lib.embedding_client import RefusedError, ServiceError
from scripts.search_page.guard import Guard, PageError, read_body
from scripts.search_page.queries import Embedder, combine
from scripts.search_page.ranking import Ranking, Result, Tags, Vector
from scripts.search_page.requests import Search, read_labels, read_search
from scripts.search_page.thumbnails import MEDIA_TYPE, NoThumbnailError, Thumbnails

STATIC = Path(__file__).parent / "static"
ROW_DIGITS = 19  # of an int64
THREADS = 2  # of searches, and as many of thumbnails, each of which may hold a large picture

T = TypeVar("T")


def make_app(ranking: Ranking, embedder: Embedder, port: int) -> Starlette:
    """Return the web application. port: where it is served; other addresses are refused."""
    page = Page(ranking, embedder)
    routes = [
        Route("/api/index", page.describe_index),
        Route("/api/search", page.search, methods=["POST"]),
        Route("/api/picture", page.add_picture, methods=["POST"]),
        Route("/api/tags", page.count_tags, methods=["POST"]),
        Route("/thumbnail/{row}", page.thumbnail),
        Route("/favicon.ico", lambda request: Response(status_code=204)),
        Route("/", lambda request: FileResponse(STATIC / "page.html")),
        *(
            Route(f"/{name}", lambda request, name=name: FileResponse(STATIC / name))
            for name in ("page.css", "page.js")
        ),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, port=port)],
        exception_handlers={
            **dict.fromkeys((PageError, RefusedError, ServiceError), _explain),
            # The tab was closed during an upload: nobody reads the answer.
            ClientDisconnect: lambda request, error: Response(status_code=400),
        },
    )


async def _explain(request: Request, error: Exception) -> Response:
    if isinstance(error, ServiceError):
        return JSONResponse({"error": f"the service cannot be used: {error}"}, 502)
    status = error.status if isinstance(error, PageError) else 422
    return JSONResponse({"error": str(error)}, status)


class Page:
    """The addresses of the page."""

    def __init__(self, ranking: Ranking, embedder: Embedder) -> None:
        self._ranking = ranking
        self._embedder = embedder
        self._thumbnails = Thumbnails(ranking.paths)
        self._search_limiter = anyio.CapacityLimiter(THREADS)
        self._thumbnail_limiter = anyio.CapacityLimiter(THREADS)
        # The last answer: a click on a tag, and each letter typed then, needs it again.
        self._tags: tuple[tuple[str, ...], Tags] | None = None

    async def describe_index(self, request: Request) -> Response:
        """Answer what the page needs to know at its start."""
        return JSONResponse(
            {
                "pictures": len(self._ranking.paths),
                "max_picture_bytes": embedding_client.COG_FILE_BYTES,
            }
        )

    async def search(self, request: Request) -> Response:
        """Answer the best pictures, and the time that each half of the work took."""
        search = await read_search(request)
        with _timed() as embedding:
            query = await self._query(search)
            if search.labels:
                await self._embedder.texts(search.labels)  # for `_tags_of`, from the cache
        with _timed() as searching:
            tags = await self._tags_of(search.labels) if search.labels else None
            results = await self._in_thread(lambda: self._rank(search, query, tags))
        return JSONResponse(
            {
                "results": [self._describe(result, tags) for result in results],
                "embed_ms": embedding[0],
                "search_ms": searching[0],
            }
        )

    async def add_picture(self, request: Request) -> Response:
        """Embed the picture in the body; answer the name that a search gives for it."""
        limit = embedding_client.COG_FILE_BYTES
        data = await read_body(request, "application/octet-stream", limit, "the picture")
        return JSONResponse({"picture": await self._embedder.add_picture(data)})

    async def count_tags(self, request: Request) -> Response:
        """Answer how many pictures each label has."""
        labels = await read_labels(request)
        if not labels:
            return JSONResponse({"tags": []})
        tags = await self._tags_of(labels)
        counts = [int((tags.label == number).sum()) for number in range(len(labels))]
        named = [{"label": label, "count": n} for label, n in zip(labels, counts, strict=True)]
        return JSONResponse({"tags": named})

    async def thumbnail(self, request: Request) -> Response:
        """Answer the thumbnail of a row."""
        row = request.path_params["row"]
        try:
            if not row.isdecimal() or len(row) > ROW_DIGITS:
                raise NoThumbnailError
            data = await anyio.to_thread.run_sync(
                self._thumbnails.get,
                int(row),
                abandon_on_cancel=True,
                limiter=self._thumbnail_limiter,
            )
        except NoThumbnailError:
            raise PageError(404, "this picture is not there any more") from None
        return Response(data, media_type=MEDIA_TYPE)

    async def _query(self, search: Search) -> Vector | None:
        given = [text for text in (search.text, search.without) if text]
        vectors = dict(zip(given, await self._embedder.texts(given), strict=True))
        picture = self._embedder.picture(search.picture) if search.picture else None
        if search.like is not None:
            picture = await self._stored_vector(search.like)
        text, without = vectors.get(search.text), vectors.get(search.without)
        return combine(text, picture, search.picture_weight, without)

    async def _stored_vector(self, row: int) -> Vector:
        if row not in self._ranking.paths:
            raise PageError(404, "this picture is not in the index")
        return await self._in_thread(lambda: self._ranking.vector(row))

    async def _tags_of(self, labels: tuple[str, ...]) -> Tags:
        if self._tags is None or self._tags[0] != labels:
            vectors = await self._embedder.texts(labels)
            self._tags = labels, await self._in_thread(lambda: self._ranking.tag(vectors))
        return self._tags[1]

    def _rank(self, search: Search, query: Vector | None, tags: Tags | None) -> list[Result]:
        if tags is not None and search.tag is not None:
            if query is None:
                return tags.best(search.tag, search.count)
            rows = tags.rows[tags.label == search.tag]
            return self._ranking.nearest_of(query, rows, search.count)
        if query is None:
            return self._ranking.first(search.count)
        return self._ranking.nearest(query, search.count)

    def _describe(self, result: Result, tags: Tags | None) -> dict[str, object]:
        path = self._ranking.paths[result.row]
        return {
            "row": result.row,
            "name": Path(path).name,
            "path": path,
            "score": result.score,
            "tag": None if tags is None else tags.of_row(result.row),
        }

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """Run `function` in a thread. It may be abandoned, so that Ctrl-C ends at once."""
        return await anyio.to_thread.run_sync(
            function, abandon_on_cancel=True, limiter=self._search_limiter
        )


@contextlib.contextmanager
def _timed() -> Iterator[list[float]]:
    """Yield a list that gets the milliseconds spent within."""
    begin, milliseconds = time.perf_counter(), list[float]()
    yield milliseconds
    milliseconds.append(round(1e3 * (time.perf_counter() - begin), 1))
