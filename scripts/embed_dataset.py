"""Embed a whole data set on a Ray cluster, with the weights and the vectors of the service.

    embed_dataset.py SOURCE DEST [--text-column NAME | --image-column NAME] [--address ADDRESS]

SOURCE  a folder or gs:// prefix of images; or, with a column named, a .parquet, .csv or .jsonl
        file, or a folder or prefix of such files. Files whose name begins with "." or "_" are
        ignored. Paths of images in a table are gs://…, or relative to the table's folder.
DEST    a folder or gs:// prefix: part-N.parquet with id, vector (float32, null beside an error) and
        error. Complete once _SUCCESS is there, which is written last.

CLIP_WEIGHTS names the model, as for the service. After an interruption, run the same command again:
it continues with the parts that are missing.

Examples:

    export CLIP_WEIGHTS=gs://your-bucket/clip-vit-l-14
    .venv/bin/python scripts/embed_dataset.py ~/Pictures ~/vectors
    .venv/bin/python scripts/embed_dataset.py gs://shop/titles.parquet gs://shop/vectors \\
      --text-column title --id-column sku --address auto
"""

from __future__ import annotations

import argparse
import sys

from scripts.dataset import DEFAULT_CORES_PER_EMBEDDER
from scripts.lib.needs import packages_of

# A part is prepared as a whole before it is embedded, and an interruption loses whole parts: 1,024
# images are 154 MB of pixels in flight and 3 MB of vectors, 8,192 texts 25 MB of vectors.
IMAGES_PER_PART = 1024
TEXTS_PER_PART = 8192
MAX_IMAGES_PER_PART = 8192  # the pixels of a part are one Arrow value, which is limited to 2 GB
MAX_TEXTS_PER_PART = 2**20


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    with packages_of("ray"):
        from scripts.dataset.run import run_command

        run_command(arguments)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="what to embed: see above")
    parser.add_argument("destination", metavar="DEST", help="where to write vectors: see above")
    column = parser.add_mutually_exclusive_group()
    column.add_argument("--text-column", metavar="NAME", help="embed the texts in this column")
    column.add_argument(
        "--image-column", metavar="NAME", help="embed the images whose paths are in this column"
    )
    parser.add_argument(
        "--id-column", metavar="NAME", help="column of ids (default: file:row, counted from 0)"
    )
    parser.add_argument(
        "--rows-per-part",
        type=int,
        metavar="N",
        help=f"rows per file (default: {IMAGES_PER_PART} images, {TEXTS_PER_PART} texts)",
    )
    parser.add_argument("--address", help="of a Ray cluster (default: this machine alone)")
    parser.add_argument(
        "--embedders", type=int, metavar="N", help="processes that embed (default: as many as fit)"
    )
    parser.add_argument(
        "--cores-per-embedder",
        type=int,
        metavar="N",
        help="cores of each embedder without a GPU"
        f" (default: {DEFAULT_CORES_PER_EMBEDDER}, or all if there are fewer)",
    )
    return parser


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the words of the command line. Exits with status 2 if they are wrong."""
    parser = make_parser()
    arguments = parser.parse_args(words)
    if arguments.id_column and not (arguments.text_column or arguments.image_column):
        parser.error("--id-column needs --text-column or --image-column")
    if arguments.rows_per_part is None:
        arguments.rows_per_part = TEXTS_PER_PART if arguments.text_column else IMAGES_PER_PART
    limit = MAX_TEXTS_PER_PART if arguments.text_column else MAX_IMAGES_PER_PART
    if not 1 <= arguments.rows_per_part <= limit:
        parser.error(f"--rows-per-part is {arguments.rows_per_part}; give 1 to {limit}")
    return arguments


if __name__ == "__main__":
    main()
