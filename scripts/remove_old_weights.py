"""Remove the files of earlier publications from a bucket or a directory.

    remove_old_weights.py LOCATION [--older-than HOURS] [--version-1] [--dry-run]

LOCATION  gs://bucket/prefix or a directory, as it was given to publish_weights.py

Publishing again leaves the old files, so that services which are starting still find them. This
command removes the files with a hash in their names that the manifest does not list, if they and
the last publication are older than HOURS. Do not run it while a model is being published there.

Example, which only lists the files:

    .venv/bin/python scripts/remove_old_weights.py gs://your-bucket/clip-vit-l-14 --dry-run
"""

from __future__ import annotations

import argparse
import re
import time
from typing import TYPE_CHECKING

from scripts.lib.needs import packages_of

if TYPE_CHECKING:
    from scripts.lib.storage import Storage

_HASHED = re.compile(
    r"(model-\d{5}-of-\d{5}-[0-9a-f]{16}\.safetensors"
    r"|(open_clip_config|tokenizer)-[0-9a-f]{16}\.json)"
)
_VERSION_1 = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def old_files(storage: Storage, older_than: float, version_1: bool = False) -> list[str]:
    """Return the files of earlier publications that are older than `older_than` seconds.

    None if the manifest is younger: a service that is starting may have read the one before it.
    Raises FileNotFoundError without a manifest, ManifestError if it is malformed.
    """
    from clip_embed.checkpoint.manifest import MANIFEST_NAME, Manifest

    manifest = Manifest.parse(storage.read(MANIFEST_NAME), storage.location)
    current = {file.stored_as for file in manifest.files}

    def is_old(name: str) -> bool:
        version = storage.version(name)
        return version is not None and time.time() - version.modified > older_than

    if not is_old(MANIFEST_NAME):
        return []
    return [
        name
        for name in storage.names()
        if name not in current
        and (_HASHED.fullmatch(name) or (version_1 and _VERSION_1.fullmatch(name)))
        and is_old(name)
    ]


def _hours(text: str) -> float:
    hours = float(text)
    if not 0 <= hours < float("inf"):
        raise ValueError
    return hours


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("location", metavar="LOCATION", help="where to remove files: see above")
    parser.add_argument(
        "--older-than",
        metavar="HOURS",
        type=_hours,
        default=24.0,
        help="minimum age of the files (default: 24)",
    )
    parser.add_argument(
        "--version-1",
        action="store_true",
        help="also remove model-0000N-of-0000M.safetensors, the shards of format version 1"
        " (transformers uses the same names)",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the files, and keep them")
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    with packages_of("demo"):
        _remove(arguments)


def _remove(arguments: argparse.Namespace) -> None:
    """Remove the files, and print their names. Raises SystemExit with one sentence."""
    from clip_embed.checkpoint.manifest import MANIFEST_NAME
    from clip_embed.errors import AccessError, ManifestError
    from scripts.lib.storage import open_storage

    try:
        storage = open_storage(arguments.location, name="LOCATION", allow_anonymous=False)
    except (ValueError, AccessError) as error:
        raise SystemExit(str(error)) from None
    try:
        names = old_files(storage, arguments.older_than * 3600, arguments.version_1)
        for name in names:
            print(name)
            if not arguments.dry_run:
                storage.delete(name)
    except FileNotFoundError:
        raise SystemExit(
            f"{storage.location} holds no {MANIFEST_NAME}, so nothing was removed; check LOCATION"
        ) from None
    except (AccessError, ManifestError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(f"{len(names)} files {'would be ' if arguments.dry_run else ''}removed")


if __name__ == "__main__":
    main()
