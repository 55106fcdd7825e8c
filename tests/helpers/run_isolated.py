"""Preprocess or tokenize each input of a directory in a process of its own.

    run_isolated.py DIRECTORY

An input that crashes, hangs or takes all memory is reported by name and does not affect the others.
DIRECTORY/inputs.json lists the inputs. This process stays small, because its children start with
its memory: it does not import the expected results.
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

import numpy as np
from PIL import Image

from clip_embed.errors import InputError
from clip_embed.inputs import preprocess, tokenizer

KILL_SECONDS = 60
"""Limit of CPU time for one input."""

PREPROCESSING = preprocess.PreprocessConfig(224, (0.5,) * 3, (0.25,) * 3, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Outcome:
    """The result of one input.

    error: the message of an InputError, None if there was none. lost: any other exception or
    signal, which is a bug. seconds: CPU time. megabytes: peak growth of the process.
    """

    name: str
    error: str | None
    lost: str | None
    seconds: float = 0.0
    megabytes: float = 0.0


def prepare_image(path: Path, max_pixels: int) -> None:
    """Preprocess an image as the service does, and save the pixels beside it as .npy."""
    np.save(f"{path}.npy", preprocess.preprocess_image(path, PREPROCESSING, max_pixels).array)


def prepare_text(path: Path, tokenizer: tokenizer.Tokenizer) -> None:
    """Tokenize a text as the service does."""
    tokenizer.tokenize(json.loads(path.read_text()))


def usage() -> tuple[float, float]:
    """Return the CPU seconds and the peak resident megabytes of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss is in bytes on macOS, else in kB
    return used.ru_utime + used.ru_stime, used.ru_maxrss / unit


def run_isolated(name: str, work: Callable[[], None]) -> Outcome:
    """Run `work` in a child process, and return its result."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (KILL_SECONDS, KILL_SECONDS))
        seconds, megabytes = usage()
        error = lost = None
        try:
            work()
        except InputError as expected:
            error = str(expected)
        except BaseException as bug:
            lost = f"{type(bug).__name__}: {bug}"
        seconds_after, megabytes_after = usage()
        outcome = Outcome(name, error, lost, seconds_after - seconds, megabytes_after - megabytes)
        with os.fdopen(writes, "w") as pipe:
            json.dump(asdict(outcome), pipe)
        os._exit(0)  # skip the rest of the program, which belongs to the parent
    os.close(writes)
    with os.fdopen(reads) as pipe:
        result = pipe.read()
    _, status = os.waitpid(child, 0)
    if not result:
        cause = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else status
        return Outcome(name, None, f"the process was ended by {cause}")
    return Outcome(**json.loads(result))


def main(directory: Path) -> None:
    """Print an Outcome as JSON for every input."""
    warnings.simplefilter("ignore")
    listed = json.loads((directory / "inputs.json").read_text())
    # Lazy imports and caches must not count for the first input. Nothing here may start a thread: a
    # process with threads cannot be forked safely.
    Image.new("RGB", (300, 200)).save(directory / "warm-up.png")
    preprocess.preprocess_image(directory / "warm-up.png", PREPROCESSING)
    for name in listed["images"]:
        work = functools.partial(prepare_image, directory / name, listed["max_pixels"])
        print(json.dumps(asdict(run_isolated(name, work))), flush=True)
    own_tokenizer = tokenizer.Tokenizer((directory / "tokenizer.json").read_bytes(), 77)
    own_tokenizer.tokenize("warm up")
    for name in listed["texts"]:
        work = functools.partial(prepare_text, directory / name, own_tokenizer)
        print(json.dumps(asdict(run_isolated(name, work))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
