"""Remove the files of earlier publications from a bucket or a directory.

    remove_old_weights.py LOCATION [--older-than HOURS] [--dry-run]

LOCATION  gs://bucket/prefix or a directory, as it was given to publish_weights.py

Publishing again leaves the old files, so that services which are starting at that moment still find
them. This removes every file that publish_weights.py has written there, that the manifest does not
name, and that is older than HOURS (by default 24). Other files stay. Do not run it while a model is
being published there.
"""

from __future__ import annotations

import argparse
import re
import time

from clip_embed.checkpoint.manifest import MANIFEST_NAME, Manifest
from clip_embed.errors import AccessError, ManifestError
from scripts.lib.storage import Storage, open_storage

# Names with a hash, and those of format version 1.
_PUBLISHED = re.compile(
    r"model-\d{5}-of-\d{5}(-[0-9a-f]{16})?\.safetensors"
    r"|(open_clip_config|tokenizer)-[0-9a-f]{16}\.json"
)


def old_files(storage: Storage, older_than: float) -> list[str]:
    """Return the files of earlier publications that are older than so many seconds.

    Raises FileNotFoundError without a manifest, ManifestError if it is malformed.
    """
    manifest = Manifest.parse(storage.read(MANIFEST_NAME), storage.location)
    current = {file.stored_as for file in manifest.files}
    found = []
    for name in storage.names():
        if name in current or not _PUBLISHED.fullmatch(name):
            continue
        version = storage.version(name)
        if version is not None and time.time() - version.modified > older_than:
            found.append(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("location", metavar="LOCATION")
    parser.add_argument("--older-than", metavar="HOURS", type=float, default=24.0)
    parser.add_argument("--dry-run", action="store_true", help="list the files, and keep them")
    arguments = parser.parse_args()
    try:
        storage = open_storage(arguments.location, allow_anonymous=False)
        names = old_files(storage, arguments.older_than * 3600)
        for name in names:
            print(name)
            if not arguments.dry_run:
                storage.delete(name)
    except ValueError as error:
        parser.error(f"LOCATION is {error}")
    except FileNotFoundError:
        raise SystemExit(
            f"{arguments.location} holds no {MANIFEST_NAME}; nothing was removed"
        ) from None
    except (AccessError, ManifestError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(f"{len(names)} files {'would be ' if arguments.dry_run else ''}removed")


if __name__ == "__main__":
    main()
