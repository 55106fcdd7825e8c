"""Refuse requests that other web sites cause, and bound what is read of a request's body."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # blob: is the preview of a dropped picture, which never leaves the browser.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    # Otherwise any site could show the pictures, though not read them.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Row ids are those of one index, and the next one may be served on the same port.
    "Cache-Control": "no-store",
}


class PageError(Exception):
    """A request that cannot be answered. The message is shown on the page."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """ASGI middleware: answer only requests to this address, from the page itself.

    A site whose name resolves to 127.0.0.1 (DNS rebinding) sends its own name as Host. A site that
    posts to this address sends its own Origin.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        suffix = "" if port == 80 else f":{port}"  # browsers leave out HTTP's own port
        self._address = f"127.0.0.1{suffix}"
        self._hosts = {self._address, f"localhost{suffix}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # start and end of the server: no request
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        allowed = host in self._hosts and origin in (None, f"http://{host}")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = JSONResponse({"error": f"open this page at http://{self._address}"}, 403)
        await (self._app if allowed else refusal)(scope, receive, send_with_headers)


async def read_body(request: Request, media_type: str, max_bytes: int, what: str) -> bytes:
    """Return the body, without reading more than `max_bytes`. Raises PageError.

    media_type: the required Content-Type: one for which browsers send a CORS preflight from other
    sites, which this server refuses.
    """
    if request.headers.get("content-type") != media_type:
        raise PageError(415, f"the Content-Type is not {media_type}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise PageError(413, f"{what} has more than {max_bytes:,} bytes; choose a smaller file")
    return bytes(body)
