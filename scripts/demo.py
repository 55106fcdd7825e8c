"""Run the whole service on this machine and show what it does. Start it with `scripts/demo`.

It publishes a small trained CLIP to an emulator of Cloud Storage, starts the real Cog server with
it, embeds sentences and drawings over HTTP, and shows which drawings match each sentence best, as
text and as a picture.

Example: .venv/bin/python scripts/demo.py
"""

from __future__ import annotations

import argparse

from scripts.lib.needs import packages_of


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    return argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def main() -> None:
    make_parser().parse_args()
    with packages_of("demo"):
        from scripts.lib.demo import run_demo

        run_demo()


if __name__ == "__main__":
    main()
