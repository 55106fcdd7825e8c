"""Publish a CLIP model to a bucket or a directory, in the form that `weights.py` pulls.

    publish_weights.py SOURCE DEST [--model NAME]

SOURCE  what it is, is recognized by its content:
        - OpenAI's ViT-L-14.pt, as `clip.load` downloads it; its code is not run
        - a checkpoint of open_clip or transformers (.pt, .pth, .bin, .ckpt, .safetensors)
        - a directory with open_clip_config.json or config.json, shards and their index included
        - hf-hub:ORG/NAME (open_clip) or ORG/NAME (transformers), of the Hugging Face hub
        - an open_clip pretrained tag: openai, laion2b_s32b_b82k
        - random:SEED, an untrained network for tests and benchmarks
DEST    gs://bucket/prefix or a directory
NAME    an open_clip model name, also as ViT-L/14@336px, or a JSON file like open_clip's model
        configs; needed only if SOURCE does not tell it

The activation and the normalization are taken from SOURCE. If it does not state them, the choice is
printed, and --quick-gelu, --no-quick-gelu, --mean and --std set it.

Every tensor is stored as float16 if all of its values survive that bit for bit, else as float32.
The manifest is written last, so that an interrupted publication is not mistaken for a model. Run
the same command again to write only the files that are missing or different.

Examples:

    .venv/bin/python scripts/publish_weights.py openai gs://your-bucket/clip-vit-l-14
    .venv/bin/python scripts/publish_weights.py ~/ViT-L-14.pt ~/clip-vit-l-14
    .venv/bin/python scripts/publish_weights.py random:0 .cache/tiny --model tests/data/tiny.json
"""

from __future__ import annotations

import argparse
import sys
import warnings

from scripts.lib.needs import packages_of


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="what to publish: see above")
    parser.add_argument("destination", metavar="DEST", help="where to publish it: see above")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the architecture, if SOURCE does not tell it: ViT-L-14, or a JSON file like"
        " open_clip's model configs",
    )
    parser.add_argument(
        "--quick-gelu",
        action=argparse.BooleanOptionalAction,
        help="the activation, if SOURCE does not state it",
    )
    parser.add_argument(
        "--mean",
        metavar="R,G,B",
        help="mean per channel, for pixels from 0 to 1, if SOURCE does not state it",
    )
    parser.add_argument(
        "--std",
        metavar="R,G,B",
        help="standard deviation per channel, for pixels from 0 to 1, if SOURCE does not state it",
    )
    return parser


def main() -> None:
    arguments = make_parser().parse_args()
    try:
        with packages_of("demo"):
            _publish(arguments)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None


def _publish(arguments: argparse.Namespace) -> None:
    """Publish what the arguments describe. Raises SystemExit with one sentence."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # stderr is for progress and for one sentence
    from clip_embed.errors import AccessError, ModelError
    from scripts.lib.storage import open_storage
    from scripts.publishing.errors import PublishError, redact
    from scripts.publishing.preprocessing import parse_triple

    destination = redact(arguments.destination)
    mean, std = (
        None if text is None else parse_triple(text, option)
        for text, option in ((arguments.mean, "--mean"), (arguments.std, "--std"))
    )
    if not arguments.source.strip():
        raise PublishError("SOURCE is empty; give a file, a directory, hf-hub:ORG/NAME or a tag")
    if not arguments.destination.strip():
        raise PublishError("DEST is empty; give gs://bucket/prefix or a directory")
    try:
        # Before the source is fetched, which may take an hour.
        storage = open_storage(arguments.destination, name="DEST", allow_anonymous=False)
        storage.check_writable()
    except (ValueError, AccessError) as error:
        raise PublishError(str(error)) from error
    except OSError as error:
        raise PublishError(_describe(error, destination)) from error

    from scripts.publishing.model import read_model
    from scripts.publishing.publish import publish

    try:
        model = read_model(
            arguments.source,
            arguments.model,
            quick_gelu=arguments.quick_gelu,
            mean=mean,
            std=std,
        )
    except ModelError as error:
        raise PublishError(f"{redact(arguments.source)}: {error}") from error
    except MemoryError as error:
        raise PublishError(
            f"{redact(arguments.source)} does not fit in memory; use a machine with more"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise PublishError(f"{redact(arguments.source)} cannot be read: {reason}") from error
    try:
        publish(model, storage)
    except (AccessError, ModelError) as error:
        raise PublishError(str(error)) from error
    except OSError as error:
        raise PublishError(_describe(error, destination)) from error


def _describe(error: OSError, destination: str) -> str:
    """Return the sentence for an error of the destination."""
    if error.strerror is None:  # the storage wrote a whole sentence
        return str(error)
    file = f" ({error.filename})" if error.filename else ""
    return (
        f"{destination} cannot be written: {error.strerror}{file}; correct that and run the same"
        " command again"
    )


if __name__ == "__main__":
    main()
