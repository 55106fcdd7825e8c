"""Google accounts of every kind, and a server on loopback that stands for Google's.

`GoogleServer` gives tokens for each kind of account, through the real google-auth. Keys are made
here, and open nothing.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

TOKEN = "sesame-open-the-bucket"


def make_private_key() -> str:
    """Return an RSA key as PEM, as in a service account's file."""
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


class GoogleServer:
    """Gives tokens, and answers as a metadata server. Use it as a context manager.

    metadata: changes how a metadata request is answered: it returns a status, after any wait.
    token_status: of requests for a token. token_seconds: how long a token is valid.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.metadata: Callable[[int], int] = lambda earlier: 200
        self.token_status = 200
        self.token_seconds = 3600
        self.token: Any = TOKEN
        self.tokens = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._answer(self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                owner._answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"

    def __enter__(self) -> GoogleServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        earlier = len(self.requests)
        self.requests.append((request.path, dict(request.headers)))
        is_metadata = request.path == "/" or request.path.startswith("/computeMetadata")
        status = self.metadata(earlier) if is_metadata else self.token_status
        body: Any = {"error": "invalid_grant", "error_description": "hunter2"}
        if status == 200:
            body = self._body(request.path.partition("?")[0])
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Metadata-Flavor", "Google")
        kind = "application/text" if isinstance(body, str) else "application/json"
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _body(self, path: str) -> Any:
        if path.endswith("project-id"):
            return "shop"
        if path.endswith("service-accounts/default/"):
            return {"email": "a@shop.iam.gserviceaccount.com", "scopes": [], "aliases": []}
        if path.endswith(("/token", ":generateAccessToken")):
            self.tokens += 1
            expiry = datetime.now(UTC) + timedelta(seconds=self.token_seconds)
            return {
                "access_token": self.token,
                "accessToken": self.token,
                "expires_in": self.token_seconds,
                "expireTime": expiry.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "token_type": "Bearer",
                "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
            }
        return ""


def silent(earlier: int) -> int:
    """Answer a metadata request after a minute."""
    time.sleep(60)
    return 200


def slow(earlier: int) -> int:
    """Answer a metadata request after a second."""
    time.sleep(1)
    return 200


def busy_at_first(earlier: int) -> int:
    """Answer the first two metadata requests with 503."""
    return 503 if earlier < 2 else 200


def service_account(server: GoogleServer, private_key: str) -> dict[str, Any]:
    return {
        "type": "service_account",
        "project_id": "shop",
        "private_key_id": "1",
        "private_key": private_key,
        "client_email": "a@shop.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": f"{server.url}/token",
    }


def accounts(server: GoogleServer, private_key: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the content of a credentials file of each kind, by its name."""
    (folder / "subject-token").write_text("subject")
    pool = "projects/1/locations/global/workloadIdentityPools/p/providers/q"
    external = {
        "type": "external_account",
        "audience": f"//iam.googleapis.com/{pool}",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{server.url}/token",
        "credential_source": {"file": str(folder / "subject-token")},
    }
    impersonation = f"{server.url}/v1/projects/-/serviceAccounts/b@shop:generateAccessToken"
    return {
        "service account": service_account(server, private_key),
        "workload identity federation": external,
        "federation with impersonation": {
            **external,
            "service_account_impersonation_url": impersonation,
        },
        "workforce user": {
            "type": "external_account_authorized_user",
            "audience": "//iam.googleapis.com/locations/global/workforcePools/p/providers/q",
            "client_id": "1",
            "client_secret": "hunter2-client",
            "refresh_token": "hunter2-refresh",
            "token_url": f"{server.url}/token",
        },
        "impersonated service account": {
            "type": "impersonated_service_account",
            "service_account_impersonation_url": impersonation,
            "source_credentials": service_account(server, private_key),
        },
    }


def broken_keys(private_key: str) -> dict[str, str]:
    """Return private keys as they are mangled on their way into a file, by what happened."""
    lines = private_key.splitlines()
    body = "".join(lines[1:-1])
    swapped = body[:100] + body[200:300] + body[100:200] + body[300:]
    return {
        "escaped twice": private_key.replace("\n", "\\n"),
        "line breaks removed": private_key.replace("\n", ""),
        "spaces for line breaks": private_key.replace("\n", " "),
        "cut": private_key[:900],
        "without its first line": "\n".join(lines[1:]),
        "without its last line": "\n".join(lines[:-1]),
        "base64 alone": body,
        "pieces swapped": "\n".join([lines[0], swapped, lines[-1]]),
        "in quotes": f'"{private_key}"',
        "of another kind": private_key.replace("PRIVATE KEY", "RSA PRIVATE KEY"),
        "of another label": private_key.replace("PRIVATE KEY", "CERTIFICATE"),
        "letters lowered": "\n".join([lines[0], *map(str.lower, lines[1:-1]), lines[-1]]),
        "one letter lost": private_key[:400] + private_key[401:],
        "carriage returns doubled": private_key.replace("\n", "\r\r\n\n"),
    }


def shows_key(text: str, private_key: str) -> str | None:
    """Return how `text` shows a part of the key: in plain, base64 or numeric form; None if not."""
    body = "".join(private_key.splitlines()[1:-1])
    parts = [body[start : start + 12] for start in range(0, len(body) - 12, 4)]
    if any(part.lower() in re.sub(r"\s|\\n", "", text).lower() for part in parts):
        return "plain"
    encoded = {
        base64.b64encode(body[start:].encode()).decode()[:16] for start in range(len(body) - 16)
    }
    if any(part in text for part in encoded):
        return "base64"
    numbers = re.findall(r"\d{1,3}", text)
    for start in range(len(numbers) - 11):
        run = [int(number) for number in numbers[start : start + 12]]
        if all(32 <= number < 127 for number in run) and bytes(run).decode() in private_key:
            return "numbers"
    if re.search("(?:[0-9a-f]{2}[ :,x]*){12}", text) and any(
        part.encode().hex() in text.replace(" ", "") for part in parts
    ):
        return "hexadecimal"
    return None
