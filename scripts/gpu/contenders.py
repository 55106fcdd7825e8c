"""This service and the libraries behind one interface, on one device, with the same weights.

Runs as a worker for throughput.py: python -m scripts.gpu.contenders NAME TASK; see `_Measured`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

import weights
from clip_embed.checkpoint.load import load_tensors
from clip_embed.checkpoint.manifest import CONFIG_NAME
from clip_embed.embedder import Embedder
from clip_embed.inputs.preprocess import Pixels, PreprocessConfig
from clip_embed.inputs.tokenizer import Tokenizer, Tokens
from clip_embed.model.config import ClipConfig, read_config
from clip_embed.service import LoadedModel, load_embedder
from clip_embed.startup.cpu_quota import usable_cpus
from scripts.benchmarks.worker import serve
from scripts.gpu.part import Recorder, Task
from scripts.gpu.samples import LONG_TEXT, short_captions

Vectors = npt.NDArray[np.float32]


class Contender(Protocol):
    """Prepared inputs are on the host; vectors are float32 [B, D] on the host, not normalized."""

    def prepare_texts(self, texts: Sequence[str]) -> Any: ...

    def prepare_images(self, pixels: Sequence[Pixels]) -> Any: ...

    def encode_texts(self, prepared: Any) -> Vectors: ...

    def encode_images(self, prepared: Any) -> Vectors: ...


class Ours:
    """This service's network."""

    def __init__(self, embedder: Embedder, tokenizer: Tokenizer) -> None:
        self.embedder = embedder
        self.encode_texts = embedder.embed_texts
        self.encode_images = embedder.embed_images
        self._tokenizer = tokenizer

    def prepare_texts(self, texts: Sequence[str]) -> list[Tokens]:
        return [self._tokenizer.tokenize(text) for text in texts]

    def prepare_images(self, pixels: Sequence[Pixels]) -> Sequence[Pixels]:
        return pixels


class Transformers:
    """transformers' CLIPModel. Texts are padded to the longest of a batch."""

    def __init__(self, task: Task, dtype: torch.dtype) -> None:
        import transformers

        folder = task.models / "transformers"
        self._model: Any = transformers.CLIPModel.from_pretrained(
            folder, local_files_only=True, dtype=dtype
        )
        self._model.to(task.device).eval()
        self._tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(
            folder, local_files_only=True
        )
        self._device, self._dtype = task.device, dtype
        self._preprocess = preprocess_config(task)

    def prepare_texts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        prepared: dict[str, torch.Tensor] = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).data
        return prepared

    def prepare_images(self, pixels: Sequence[Pixels]) -> torch.Tensor:
        return normalize(pixels, self._preprocess).to(self._dtype)

    @torch.inference_mode()
    def encode_texts(self, prepared: dict[str, torch.Tensor]) -> Vectors:
        inputs = {name: tensor.to(self._device) for name, tensor in prepared.items()}
        return to_host(self._model.get_text_features(**inputs))

    @torch.inference_mode()
    def encode_images(self, prepared: torch.Tensor) -> Vectors:
        return to_host(self._model.get_image_features(pixel_values=prepared.to(self._device)))


class OpenClip:
    """open_clip's model, in its precision "fp16" or "fp32". Texts are padded to 77 tokens."""

    def __init__(self, task: Task, dtype: torch.dtype) -> None:
        import open_clip
        import safetensors.torch

        folder = task.models / "open_clip"
        open_clip.add_model_config(folder / "check_gpu.json")
        precision = "fp16" if dtype == torch.float16 else "fp32"
        # On the device at once: on the CPU the random initialization takes seconds.
        with torch.device(task.device):
            self._model: Any = open_clip.create_model(
                "check_gpu", precision=precision, device=task.device
            )
        self._model.load_state_dict(
            safetensors.torch.load_file(folder / "open_clip_model.safetensors")
        )
        self._model.eval()
        self._tokenizer: Any = open_clip.get_tokenizer("check_gpu")
        self._device, self._dtype = task.device, dtype
        self._preprocess = preprocess_config(task)

    def prepare_texts(self, texts: Sequence[str]) -> torch.Tensor:
        tokens: torch.Tensor = self._tokenizer(list(texts))
        return tokens

    def prepare_images(self, pixels: Sequence[Pixels]) -> torch.Tensor:
        return normalize(pixels, self._preprocess).to(self._dtype)

    @torch.inference_mode()
    def encode_texts(self, prepared: torch.Tensor) -> Vectors:
        return to_host(self._model.encode_text(prepared.to(self._device)))

    @torch.inference_mode()
    def encode_images(self, prepared: torch.Tensor) -> Vectors:
        return to_host(self._model.encode_image(prepared.to(self._device)))


def to_host(features: Any) -> Vectors:
    """Return features as float32 on the host. transformers 5 wraps them."""
    tensor: torch.Tensor = getattr(features, "pooler_output", features)
    vectors: Vectors = tensor.float().cpu().numpy()
    return vectors


def normalize(pixels: Sequence[Pixels], config: PreprocessConfig) -> torch.Tensor:
    """Return float32 [B, 3, S, S] on the host, as the libraries' transforms do."""
    batch = torch.from_numpy(np.stack([each.array for each in pixels])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return batch.contiguous().float().div_(255).sub_(mean).div_(std)


def read_configs(task: Task) -> tuple[ClipConfig, PreprocessConfig]:
    """Return the architecture and the preprocessing of the published model."""
    with weights.pull(task.ours) as pull:
        return read_config(pull.file(CONFIG_NAME))


def preprocess_config(task: Task) -> PreprocessConfig:
    """Return the preprocessing of the published model."""
    return read_configs(task)[1]


def load_ours(location: str, device: str, for_catalogs: bool = False) -> LoadedModel:
    """Load the service's network as the service does, in its precision for `device`."""
    with weights.pull(location) as pull:
        loaded = load_embedder(pull, device)
    loaded.embedder.warm_up(for_catalogs)
    return loaded


def load_ours_in_float32(location: str, device: str) -> Embedder:
    """Load the service's network in float32 on any device, without CUDA graphs."""
    with weights.pull(location) as pull:
        tensors = load_tensors(pull.blocks(), torch.device(device), torch.float32)
        return Embedder.build(pull.file(CONFIG_NAME), tensors)


def ours(task: Task) -> Ours:
    loaded = load_ours(task.ours, task.device)
    return Ours(loaded.embedder, loaded.tokenizer)


def ours_for_catalogs(task: Task) -> Ours:
    """Load the network as scripts/embed_dataset.py does."""
    loaded = load_ours(task.ours, task.device, for_catalogs=True)
    return Ours(loaded.embedder, loaded.tokenizer)


def ours_without_graphs(task: Task) -> Ours:
    """Load the network and turn its CUDA graphs off. On a CPU it has none."""
    contender = ours(task)
    contender.embedder.use_graphs = False
    return contender


def dtype_of(task: Task) -> torch.dtype:
    """Return the precision in which contenders run, that of the service."""
    return torch.float16 if task.device == "cuda" else torch.float32


SERVICE, CATALOGS = "this service", "for catalogs"
LIBRARIES = {"transformers", "open_clip"}

CONTENDERS: dict[str, Callable[[Task], Contender]] = {
    SERVICE: ours,
    CATALOGS: ours_for_catalogs,
    "without CUDA graphs": ours_without_graphs,
    "transformers": lambda task: Transformers(task, dtype_of(task)),
    "open_clip": lambda task: OpenClip(task, dtype_of(task)),
}
"""Name in tables → loads it on the task's device."""


class _Measured:
    """Answer requests [kind, batch size, seconds] with items per second, or GiB. Kinds:

    short texts, long texts: prepared before. raw texts: short ones, prepared in the measured time.
    images: preprocessed before. allocated, reserved: peak GiB of GPU memory.
    """

    def __init__(self, name: str, contender: Contender, image_size: int, record: Recorder) -> None:
        self._name, self._record = name, record
        self._contender = contender
        self._image_size = image_size
        self._warm: dict[tuple[str, int], Callable[[], object]] = {}

    def measure(self, kind: str, batch: int, seconds: float) -> float:
        """Return the value, nan after an error, whose traceback goes to stderr."""
        try:
            if kind == "allocated":
                return torch.cuda.max_memory_allocated() / 2**30
            if kind == "reserved":
                return torch.cuda.max_memory_reserved() / 2**30
            if (kind, batch) not in self._warm:
                encode = self._encode(kind, batch)
                for _ in range(3):
                    encode()
                self._warm[kind, batch] = encode
            return batch * calls_per_second(self._warm[kind, batch], seconds)
        except Exception as error:
            traceback.print_exc()
            self._record.fail(f"{self._name}, {batch} {kind}: {error!r}"[:300])
            return math.nan

    def _encode(self, kind: str, batch: int) -> Callable[[], object]:
        contender = self._contender
        if kind == "images":
            images = contender.prepare_images(noise(batch, self._image_size))
            return lambda: contender.encode_images(images)
        texts = [LONG_TEXT] * batch if kind == "long texts" else short_captions(batch)
        if kind == "raw texts":
            return lambda: contender.encode_texts(contender.prepare_texts(texts))
        prepared = contender.prepare_texts(texts)
        return lambda: contender.encode_texts(prepared)


def _measure_nothing(*_: object) -> float:
    """Stand in for a contender that could not be loaded."""
    return math.nan


def noise(count: int, size: int) -> list[Pixels]:
    """Return images of random pixels, the same ones each time."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return [Pixels(array, size, size) for array in pixels]


def calls_per_second(call: Callable[[], object], seconds: float) -> float:
    """Call for about `seconds`, at least once."""
    calls, begin = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            return calls / elapsed


def command(name: str, task: Task) -> list[str]:
    """Return the arguments of Python that run a contender as a worker."""
    return ["-m", __name__, name, json.dumps(dataclasses.asdict(task))]


def main() -> None:
    name, document = sys.argv[1:]
    task = Task(**json.loads(document))
    torch.set_num_threads(usable_cpus())
    record = Recorder(Path(task.records))
    measure: Callable[..., float] = _measure_nothing
    with record.section(name):
        size = preprocess_config(task).size
        measure = _Measured(name, CONTENDERS[name](task), size, record).measure
    serve(measure)


if __name__ == "__main__":
    main()
