"""Run the whole service on this machine and show what it does. Start it with `scripts/demo`.

It publishes a small trained CLIP to an emulator of Cloud Storage, starts the real Cog server with
it, embeds sentences and drawings over HTTP, and shows which drawings match each sentence best, as
text and as a picture. With --page it serves a page for search over the drawings instead.

Example: .venv/bin/python scripts/demo.py
"""

from __future__ import annotations

import argparse

from scripts.lib.needs import packages_of

PORT = 8100


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="serve a page for search")
    parser.add_argument(
        "--port", type=int, metavar="N", default=PORT, help=f"port of the page (default: {PORT})"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


def main() -> None:
    parser = make_parser()
    options = parser.parse_args()
    if not options.page and (options.open or options.port != PORT):
        parser.error("--open and --port need --page")
    if options.page:
        with packages_of("search"):
            from scripts.lib.demo_page import run_page

            run_page(options.port, options.open)
        return
    with packages_of("demo"):
        from scripts.lib.demo import run_demo

        run_demo()


if __name__ == "__main__":
    main()
