"""Full-size ViT-L/14 with the weights of `random:0`, as ours and as the libraries' network.

Each is measured in a process of its own, so that ours has the memory settings cog.yaml gives the
image and the libraries' have what their users' processes have.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers

import publish_weights
import weights
from benchmarks.peers import convert
from clip_embed import manifest, tensors
from clip_embed.config import ClipConfig
from clip_embed.cpus import usable_cpus
from clip_embed.embedder import Embedder
from clip_embed.text import Tokenizer
from local_server import CACHE, ROOT, image_environment

OPEN_CLIP_NAME = publish_weights.DEFAULT_MODEL


@contextlib.contextmanager
def files() -> Iterator[Path]:
    """A folder with the same numbers in everybody's form."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        model = publish_weights.read_model("random:0", OPEN_CLIP_NAME)
        publish_weights.publish(model, publish_weights.Directory(str(folder / "ours")))
        (folder / "open_clip").mkdir()
        convert.write_open_clip(folder / "open_clip", model.tensors)
        convert.write_openai(folder / "openai.pt", model.tensors)
        (folder / "transformers").mkdir()
        config = ClipConfig.from_open_clip(model.config["model_cfg"])
        convert.write_transformers(folder / "transformers", config, model.tensors)
        del model
        yield folder


def ours(folder: Path) -> tuple[Embedder, Tokenizer]:
    """As predict.py sets them up, in float32 on the CPU."""
    torch.set_num_threads(usable_cpus())
    with weights.pull(str(folder / "ours")) as pull:
        loaded = tensors.load(pull.blocks(), torch.device("cpu"), torch.float32)
        embedder = Embedder.build(pull.file(manifest.CONFIG_NAME), loaded)
        tokenizer = Tokenizer(pull.file(manifest.TOKENIZER_NAME), embedder.config.context_length)
    return embedder, tokenizer


def with_open_clip(folder: Path) -> tuple[Any, Any]:
    """open_clip's network and its tokenizer."""
    torch.set_num_threads(usable_cpus())
    model, _, _ = open_clip.create_model_and_transforms(
        OPEN_CLIP_NAME, pretrained=str(folder / "open_clip" / "open_clip_model.safetensors")
    )
    return model.eval(), open_clip.get_tokenizer(OPEN_CLIP_NAME)


def with_openai(folder: Path) -> tuple[Any, Any]:
    """The network and the `tokenize` of OpenAI's `clip`, which warns when it is imported."""
    import clip

    torch.set_num_threads(usable_cpus())
    model, _ = clip.load(str(folder / "openai.pt"), device="cpu")
    return model, clip.tokenize


def with_transformers(folder: Path) -> tuple[Any, Any]:
    """transformers' network and its tokenizer, padding to the longest caption of a batch."""
    torch.set_num_threads(usable_cpus())
    return (
        transformers.CLIPModel.from_pretrained(folder / "transformers", local_files_only=True),
        transformers.CLIPTokenizer.from_pretrained(folder / "transformers", local_files_only=True),
    )


class Contender:
    """A process that runs `benchmarks.<module>`'s `contender(name, folder)` whenever it is asked.

    as_in_image: with the memory settings of cog.yaml. Use as a context manager.
    """

    def __init__(self, module: str, name: str, folder: Path, as_in_image: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", name, str(folder)],
            cwd=ROOT / "scripts",
            env={
                **os.environ,
                **(image_environment() if as_in_image else {}),
                "PYTHONPATH": str(ROOT),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()

    def ask(self, what: str) -> float:
        """The value of one run. Raises RuntimeError if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("value "):
                return float(line.removeprefix("value "))
        raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")


def answer(contender: Callable[[str, Path], Mapping[str, Callable[[], float]]]) -> None:
    """Be the process of a `Contender`: its arguments are a name and a folder."""
    name, folder = sys.argv[1:]
    what = contender(name, Path(folder))
    for line in sys.stdin:
        print("value", what[line.strip()](), flush=True)


def per_second(count: int, encode: Callable[[], object]) -> float:
    """How many of the `count` things that `encode` does it does in a second."""
    with torch.inference_mode():
        begin = time.perf_counter()
        encode()
        return count / (time.perf_counter() - begin)


def sgemm_gflops(rows: int, inputs: int, outputs: int) -> float:
    """What this machine's matrix product brings, in GFLOP/s: the limit of any forward pass."""
    torch.set_num_threads(usable_cpus())
    x, w = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    best = 0.0
    for _ in range(12):
        begin = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = max(best, 2 * rows * inputs * outputs / (time.perf_counter() - begin) / 1e9)
    return best
