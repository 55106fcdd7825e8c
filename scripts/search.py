"""Search a folder of pictures by text or by another picture, through a running service.

    search.py index FOLDER       [--url URL] [--db FOLDER] [--in-flight N]
    search.py query TEXT|PICTURE [--url URL] [--db FOLDER] [--count N] [--sheet FILE]
    search.py serve              [--url URL] [--db FOLDER] [--port N] [--open]

URL is a local Cog server or container (default http://localhost:8000), or an address where
Replicate creates predictions: https://api.replicate.com/v1/predictions with --version, or
https://api.replicate.com/v1/deployments/OWNER/NAME/predictions. The token for Replicate is read
from REPLICATE_API_TOKEN.

`index` can be interrupted and run again at any time. It embeds new and changed files, and removes
deleted files from the index. Files that the service refuses are listed and skipped.
`query` prints the ranking and writes a contact sheet.
`serve` shows a page for search in the browser, on this machine only.

Examples:

    .venv/bin/python scripts/search.py index ~/Pictures
    .venv/bin/python scripts/search.py query "a red sports car" --count 3
    .venv/bin/python scripts/search.py query photo.jpg
    .venv/bin/python scripts/search.py serve --open
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.needs import packages_of

URL = "http://localhost:8000"
PORT = 8100
CACHE = Path(__file__).resolve().parents[1] / ".cache"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    index = _add_command(
        commands, "index", "embed a folder of pictures", "~/Pictures --db ~/pictures-index"
    )
    index.add_argument("folder", type=Path, help="of pictures; subfolders are included")
    index.add_argument(
        "--in-flight", type=int, metavar="N", default=32, help="concurrent requests (default: 32)"
    )
    query = _add_command(
        commands, "query", "find pictures by text or by a picture", '"a red sports car" --count 3'
    )
    query.add_argument(
        "query", metavar="TEXT|PICTURE", help="a name with a picture's suffix is a file"
    )
    query.add_argument(
        "--count", type=int, metavar="N", default=12, help="number of results (default: 12)"
    )
    query.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        default=CACHE / "search.png",
        help="contact sheet (default: .cache/search.png)",
    )
    serve = _add_command(commands, "serve", "show a page for search in the browser", "--open")
    serve.add_argument(
        "--port", type=int, metavar="N", default=PORT, help=f"of the page (default: {PORT})"
    )
    serve.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


def _add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    purpose: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a command, with the options that all commands have."""
    command = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"Example: .venv/bin/python scripts/search.py {name} {example}",
    )
    command.add_argument("--url", default=URL, help=f"address of the service (default: {URL})")
    command.add_argument(
        "--version", help="version of the model, for Replicate's /v1/predictions (default: none)"
    )
    command.add_argument(
        "--db",
        type=Path,
        metavar="FOLDER",
        default=CACHE / "search-index",
        help="folder of the index (default: .cache/search-index)",
    )
    return command


def main(arguments: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    with packages_of("search"):
        from scripts.lib.search import run

        run(options)


if __name__ == "__main__":
    main()
