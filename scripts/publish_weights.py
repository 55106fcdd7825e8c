"""Publish a CLIP model to a bucket or a directory, in the form that `weights.py` pulls.

    publish_weights.py SOURCE DEST [--model NAME]

SOURCE  an open_clip pretrained tag ("openai"), a checkpoint file (.pt, .pth, .bin or .safetensors),
        or random:SEED for an untrained network (tests, benchmarks)
DEST    gs://bucket/prefix or a directory
NAME    an open_clip model name, or a JSON file like open_clip's model configs

Every tensor is stored as float16 if all of its values survive that bit for bit, else as float32.
The manifest is written last, so that an interrupted publication is not mistaken for a model. Run
the same command again to write only the files that are missing or different.
"""

from __future__ import annotations

import argparse

from clip_embed.errors import AccessError, ModelError
from scripts.publishing import DEFAULT_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DEST")
    parser.add_argument("--model", metavar="NAME", default=DEFAULT_MODEL)
    arguments = parser.parse_args()
    # Here, and not above: torch takes seconds to import, and --help does not need it.
    from scripts.lib.storage import open_storage
    from scripts.publishing.model import read_model
    from scripts.publishing.publish import publish

    try:
        storage = open_storage(arguments.destination, allow_anonymous=False)
    except ValueError as error:
        parser.error(f"DEST is {error}")
    except AccessError as error:
        raise SystemExit(f"{arguments.destination}: {error}") from error
    try:
        publish(read_model(arguments.source, arguments.model), storage)
    except ModelError as error:
        raise SystemExit(f"{arguments.source}: {error}") from error
    except AccessError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
