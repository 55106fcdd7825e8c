"""Every input of a folder, prepared in a process of its own.

    each_alone.py FOLDER

So one that crashes, hangs or takes all memory is known by name, and costs nobody else anything.
FOLDER/inputs.json lists the inputs. This process stays small, because its children begin with what
it holds: it knows nothing of what the inputs are meant to show.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from clip_embed import image, text
from clip_embed.errors import InputError

KILL_SECONDS = 60
"""Of processor time; whoever needs more is ended."""

PREPROCESSING = image.Preprocessing(224, (0.5,) * 3, (0.25,) * 3, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Outcome:
    """What came of an input.

    error: None for a vector. lost: what else came of it, which must not be. seconds: of processor
    time. megabytes: by which its process grew at most.
    """

    name: str
    error: str | None
    lost: str | None
    seconds: float = 0.0
    megabytes: float = 0.0


def prepare_image(path: Path, max_pixels: int) -> None:
    """As the service does; what it becomes stands beside it, as .npy."""
    np.save(f"{path}.npy", image.prepare(path, PREPROCESSING, max_pixels).array)


def prepare_text(path: Path, tokenizer: text.Tokenizer) -> None:
    """As the service does."""
    tokenizer.tokenize(json.loads(path.read_text()))


def usage() -> tuple[float, float]:
    """Processor seconds so far, and the most megabytes that were resident at any time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def alone(name: str, work: Callable[[], None]) -> Outcome:
    """What comes of `work` in a process that does nothing else."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (KILL_SECONDS, KILL_SECONDS))
        seconds, megabytes = usage()
        error = lost = None
        try:
            work()
        except InputError as refused:
            error = str(refused)
        except BaseException as other:
            lost = f"{type(other).__name__}: {other}"
        then = usage()
        outcome = Outcome(name, error, lost, then[0] - seconds, then[1] - megabytes)
        with os.fdopen(writes, "w") as told:
            json.dump(asdict(outcome), told)
        os._exit(0)  # the child is done: nothing that follows is its own
    os.close(writes)
    with os.fdopen(reads) as told:
        said = told.read()
    _, status = os.waitpid(child, 0)
    if not said:
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else status
        return Outcome(name, None, f"ended by {ended}")
    return Outcome(**json.loads(said))


def main(folder: Path) -> None:
    """Print an Outcome, as JSON, for every input."""
    warnings.simplefilter("ignore")
    listed = json.loads((folder / "inputs.json").read_text())
    # What is imported or built at the first use counts for no input. Only what starts no threads:
    # a process that has some is not one to fork.
    Image.new("RGB", (300, 200)).save(folder / "warm-up.png")
    image.prepare(folder / "warm-up.png", PREPROCESSING)
    for name in listed["images"]:
        work = functools.partial(prepare_image, folder / name, listed["max_pixels"])
        print(json.dumps(asdict(alone(name, work))), flush=True)
    tokenizer = text.Tokenizer((folder / "tokenizer.json").read_bytes(), 77)
    tokenizer.tokenize("warm up")
    for name in listed["texts"]:
        work = functools.partial(prepare_text, folder / name, tokenizer)
        print(json.dumps(asdict(alone(name, work))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
