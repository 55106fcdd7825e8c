"""Start the service, make one prediction, print its output as JSON. See `scripts/predict`."""

from __future__ import annotations

import argparse
import base64
import json
import mimetypes
import os
import sys
import tempfile
import urllib.error
from pathlib import Path

from local_server import CogServer


def read_input(argument: str) -> tuple[str, str]:
    """NAME=VALUE or NAME=@FILE, as `cog predict -i` takes them; a file becomes a data: URI."""
    name, equals, value = argument.partition("=")
    if not equals:
        raise SystemExit(f"-i {argument}: write NAME=VALUE or NAME=@FILE")
    if not value.startswith("@"):
        return name, value
    file = Path(value[1:])
    if not file.is_file():
        raise SystemExit(f"-i {argument}: there is no file {file}")
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return name, f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def absolute(*names: str) -> dict[str, str]:
    """Those of these variables that hold a path, made absolute: the server runs elsewhere."""
    values = {name: os.environ.get(name, "") for name in names}
    return {
        name: str(Path(value).expanduser().resolve())
        for name, value in values.items()
        if value and "://" not in value
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/predict", description=__doc__)
    parser.add_argument("-i", "--input", action="append", default=[], metavar="NAME=VALUE")
    inputs = dict(map(read_input, parser.parse_args().input))
    paths = absolute("CLIP_WEIGHTS", "CLIP_WEIGHTS_CACHE", "GOOGLE_APPLICATION_CREDENTIALS")
    # The server's own log is thirty lines of JSON: shown only if nothing else says what failed.
    with tempfile.TemporaryFile() as log, CogServer(paths, log=log) as server:
        try:
            server.wait_ready()
            response = server.predict(**inputs)
        except urllib.error.HTTPError as error:
            raise SystemExit(error.read().decode()) from error
        except (RuntimeError, OSError) as error:
            if server.process is not None and server.process.poll() is not None:
                log.seek(0)
                print(log.read().decode(errors="replace"), file=sys.stderr)
            raise SystemExit(str(error)) from error
    print(response["logs"], end="", file=sys.stderr)
    if response["status"] != "succeeded":
        raise SystemExit(response["error"])
    json.dump(response["output"], sys.stdout)
    print()


if __name__ == "__main__":
    main()
