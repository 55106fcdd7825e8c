"""Start the service, make one prediction, and print its output as JSON.

    CLIP_WEIGHTS=… scripts/predict -i text="a red bicycle"
    CLIP_WEIGHTS=… scripts/predict -i image=@photo.jpg

CLIP_WEIGHTS names the model: gs://bucket/prefix, https://host/prefix or a directory. The server is
stopped however this command ends.

Example, with the model of the demo:

    CLIP_WEIGHTS=demo_model scripts/predict -i text="a red bicycle"
"""

from __future__ import annotations

import argparse
import base64
import json
import mimetypes
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from scripts.lib.needs import packages_of


def read_input(argument: str) -> tuple[str, str]:
    """Parse NAME=VALUE or NAME=@FILE, like `cog predict -i`; a file becomes a data URI."""
    name, equals, value = argument.partition("=")
    if not equals:
        raise SystemExit(f"-i {argument}: write NAME=VALUE or NAME=@FILE")
    if not value.startswith("@"):
        return name, value
    file = Path(value[1:])
    if not file.is_file():
        raise SystemExit(f"-i {argument}: there is no file {file}")
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return name, f"data:{media_type};base64,{base64.b64encode(file.read_bytes()).decode()}"


def absolute_paths(*names: str) -> dict[str, str]:
    """Return the environment variables in `names` that hold a path, made absolute.

    The server runs in another directory.
    """
    values = {name: os.environ.get(name, "") for name in names}
    return {
        name: str(Path(value).expanduser().resolve())
        for name, value in values.items()
        if value and "://" not in value
    }


def exit_on_signal(number: int, frame: FrameType | None) -> None:
    """Unwind the stack, so that the server is stopped before this process ends."""
    raise SystemExit(128 + number)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-i",
        "--input",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an input, text or image; NAME=@FILE sends a file",
    )
    return parser


def main() -> None:
    inputs = dict(map(read_input, make_parser().parse_args().input))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, exit_on_signal)
    with packages_of("demo"):
        import httpx

        from scripts.lib.cog_server import CogServer

    paths = absolute_paths("CLIP_WEIGHTS", "CLIP_WEIGHTS_CACHE", "GOOGLE_APPLICATION_CREDENTIALS")
    # The server's log is thirty lines of JSON: shown only if the server exits without an answer.
    with tempfile.TemporaryFile() as log, CogServer(paths, log=log) as server:
        try:
            server.wait_ready()
            response = server.predict(**inputs)
        except httpx.HTTPStatusError as error:
            raise SystemExit(error.response.text) from error
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
