"""Load a published model and embed texts and images with it: load → preprocess → batch → vector.

Independent of Cog. `load_embedder` brings the network up wherever it is needed: in the service, in
Ray's workers, in benchmarks and checks. This module imports no torch, so that importing it is
quick; `load_embedder` imports torch while the weights are being downloaded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from clip_embed.batching import Batcher, BatchQueue, BatchResult
from clip_embed.checkpoint.manifest import CONFIG_NAME, TOKENIZER_NAME, Block, Manifest
from clip_embed.errors import ImageError, TextError
from clip_embed.inputs.data_uri import decode_data_uri, is_data_uri
from clip_embed.inputs.image_url import (
    Download,
    DownloadLimits,
    ImageDownloader,
    is_http_url,
)
from clip_embed.inputs.preprocess import Pixels, preprocess_image
from clip_embed.inputs.tokenizer import Tokenizer
from clip_embed.metrics import Observer, make_observer
from clip_embed.model.batch_limits import SERVICE_LIMITS
from clip_embed.model.config import read_config
from clip_embed.settings import Settings
from clip_embed.startup import cuda_start, torch_import
from clip_embed.startup.cpu_quota import usable_cpus
from clip_embed.startup.prefault import PrefaultedMemory
from clip_embed.startup.timing import StageTimer, no_garbage_collection

if TYPE_CHECKING:
    from clip_embed.embedder import Embedder

log = logging.getLogger("clip_embed.service")

Result = TypeVar("Result")
Metrics = dict[str, int | float]

SHORT_TEXT = 1000
"""Characters that are tokenized on the event loop, in 0.1 to 2 ms. A thread would cost more."""

DOWNLOAD_SHARE = 3 / 4
"""Share of Cog's slots that downloads may hold. The rest is left for inputs that need none, however
slow the web servers of image URLs are."""

FAIL_EARLY_SECONDS = 0.3
"""How long the import of torch may be delayed by waiting for the manifest."""

HEALTH_CHECK_SECONDS = 1.0
"""How long a health-check result is cached. Checks that overlap are not merged."""


class PulledModel(Protocol):
    """The part of `weights.Pull` that loading needs; see there."""

    @property
    def manifest(self) -> Manifest: ...

    def wait_manifest(self, seconds: float) -> None: ...

    def file(self, name: str) -> bytes: ...

    def blocks(self) -> Iterator[Block]: ...

    def wait_complete(self) -> int: ...

    def summary(self) -> str: ...

    @property
    def stats(self) -> PullStats: ...


class PullStats(Protocol):
    """The part of `weights.PullStats` that metrics need; see there."""

    bytes_verified: int
    pull_seconds: float


@dataclass(frozen=True)
class LoadedModel:
    """The network on its device, and the tokenizer that belongs to it."""

    embedder: Embedder
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Embedding:
    """vector: float32 [D], not normalized. metrics: name → value, for the response."""

    vector: npt.NDArray[np.float32]
    metrics: Metrics


def load_embedder(
    pull: PulledModel,
    device: str | None = None,
    *,
    threads: int | None = None,
    timer: StageTimer | None = None,
) -> LoadedModel:
    """Bring up the network of `pull` while it is still being downloaded.

    device: "cuda", "cpu", or None for the GPU if there is one. threads: CPU threads of the network,
    by default one for each usable CPU. timer: receives the stages "import torch" and "load".
    Call `warm_up` of the embedder in the thread that will use it.

    Raises WeightsError, ModelError, SettingError (the device cannot be used).
    """
    timer = timer or StageTimer()
    memory = PrefaultedMemory()
    on_cpu = not torch_import.gpu_is_likely(device)
    # One thread for the weights, and one for the tokenizer and then the kernel.
    with ThreadPoolExecutor(2, thread_name_prefix="load") as background:
        if on_cpu:
            memory.prepare(pull.wait_complete)
        else:
            cuda_start.create_context()
        # The import of torch leaves a core idle: time enough for the tokenizer.
        tokenizer = background.submit(_load_tokenizer, pull)
        torch_import.load_libraries()
        # A location that cannot work fails here, and not after the import. This takes no time: the
        # manifest has arrived while the libraries were loaded.
        pull.wait_manifest(FAIL_EARLY_SECONDS)
        torch_import.import_torch()
        import torch

        from clip_embed.checkpoint.load import load_tensors
        from clip_embed.model.cuda_kernels import compile_add_layer_norm
        from clip_embed.model.device import check_memory, choose_device, choose_dtype, gpu_errors

        timer.end_stage("import torch")
        torch.set_num_threads(threads or usable_cpus())
        chosen = choose_device(device)
        check_memory(chosen, sum(shard.size for shard in pull.manifest.shards))
        tensors = background.submit(
            load_tensors, pull.blocks(), chosen, choose_dtype(chosen), memory.take
        )
        open_clip_config = pull.file(CONFIG_NAME)
        kernel = background.submit(compile_add_layer_norm, read_config(open_clip_config)[0], chosen)
        from clip_embed.embedder import Embedder  # meanwhile

        with gpu_errors():
            cuda_start.load_cublas(chosen)
            embedder = Embedder.build(open_clip_config, tensors.result(), kernel.result())
        timer.end_stage("load")
        return LoadedModel(embedder, tokenizer.result())


def _load_tokenizer(pull: PulledModel) -> Tokenizer:
    config, _ = read_config(pull.file(CONFIG_NAME))
    tokenizer = Tokenizer(pull.file(TOKENIZER_NAME), config.context_length)
    tokenizer.tokenize("warm up")
    return tokenizer


class Service:
    """Embeds texts and images on behalf of many concurrent requests."""

    def __init__(
        self, model: LoadedModel, settings: Settings, observer: Observer | None = None
    ) -> None:
        """Warm the network up at the shapes that are served."""
        self._observer = observer = observer or Observer()
        self._tokenizer = model.tokenizer
        self._embedder = embedder = model.embedder
        self._settings = settings
        limits = DownloadLimits(
            bytes=settings.max_image_bytes,
            seconds=settings.image_url_seconds,
            downloads=max(int(settings.max_concurrency * DOWNLOAD_SHARE), 1),
            addresses=settings.image_urls,
        )
        self._downloader = ImageDownloader(limits, settings.user_agent)
        largest = SERVICE_LIMITS[embedder.device.type]
        self._texts = BatchQueue(
            observer.batches("text", embedder.embed_texts),
            largest.tokens,
            lambda tokens: tokens.eot_index + 1,
        )
        self._images = BatchQueue(
            observer.batches("image", embedder.embed_images), largest.images, lambda _: 1
        )
        self._batcher = Batcher()
        observer.gauge(
            "queue_depth", "Requests that wait for the device", lambda: self._batcher.waiting
        )
        observer.gauge(
            "downloads_in_progress",
            "Images that are being downloaded",
            lambda: self._downloader.running,
        )
        self._batcher.run_on_device_thread(embedder.warm_up)
        self._healthy, self._health_checked = True, time.monotonic()
        self._threads = ThreadPoolExecutor(usable_cpus(), thread_name_prefix="prepare")

    @classmethod
    def load(cls, pull: PulledModel, settings: Settings, timer: StageTimer) -> Service:
        """Load the model of `pull` and log what is ready. Raises as `load_embedder` does."""
        observer = make_observer(settings.metrics_port)
        with no_garbage_collection():
            model = load_embedder(pull, settings.device, timer=timer)
            service = cls(model, settings, observer)
        timer.end_stage("warm up")
        observer.setup_finished(timer.stages, pull.stats.bytes_verified, pull.stats.pull_seconds)
        embedder, manifest = model.embedder, pull.manifest
        log.info(
            "ready: %s (%s), %d floats, %s, %s; %s; pulled %s",
            manifest.model,
            manifest.source,
            embedder.config.embed_dim,
            embedder.device,
            str(embedder.dtype).removeprefix("torch."),
            timer,
            pull.summary(),
        )
        return service

    async def embed_text(self, text: str) -> Embedding:
        """Embed `text`, cut to the model's context length. Raises TextError, EmbeddingError."""
        with self._observer.prediction("text"):
            started = time.perf_counter()
            # Cog checks types only if it has a schema.
            if not isinstance(text, str):
                raise TextError(f"text is of type {type(text).__name__}; send a string")
            if len(text) <= SHORT_TEXT:
                tokens = self._tokenizer.tokenize(text)
            else:
                tokens = await self._off_loop(self._tokenizer.tokenize, text)
            prepared = time.perf_counter()
            done = await self._batcher.submit(self._texts, tokens)
        if tokens.truncated:
            log.info("text is cut: CLIP reads its first %d tokens", len(tokens.ids) - 2)
        metrics: Metrics = {"tokens": len(tokens.ids), "truncated": tokens.truncated}
        return self._embedding("text", done, metrics, prepared - started)

    async def embed_image(self, image: str | os.PathLike[str]) -> Embedding:
        """Embed an image: an http(s) URL or a data: URI, or the path of a file, as a PathLike.

        Raises ImageError, DownloadError, EmbeddingError.
        """
        metrics: Metrics = {}
        with self._observer.prediction("image"):
            started = time.perf_counter()
            if not isinstance(image, str | os.PathLike):
                raise ImageError(f"image is of type {type(image).__name__}; send a string")
            source: str | os.PathLike[str] | Download = image
            if isinstance(image, str) and is_http_url(image):
                source = await self._downloader.download(image)
                metrics["download_ms"] = _milliseconds(time.perf_counter() - started)
                started = time.perf_counter()
            pixels = await self._off_loop(self._preprocess, source)
            prepared = time.perf_counter()
            done = await self._batcher.submit(self._images, pixels)
        metrics |= {"image_width": pixels.width, "image_height": pixels.height}
        return self._embedding("image", done, metrics, prepared - started)

    def _preprocess(self, source: str | os.PathLike[str] | Download) -> Pixels:
        """Return the pixels of a file, a download or a data: URI. Raises ImageError."""
        settings = self._settings
        if isinstance(source, Download):
            file, name = source.file, source.name
        elif isinstance(source, os.PathLike):
            file, name = open(source, "rb"), Path(source).name  # noqa: SIM115 - closed below
        elif is_data_uri(source.lstrip()):
            data = decode_data_uri(source.lstrip(), settings.max_image_bytes)
            file, name = BytesIO(data), "image"
        else:
            scheme = re.match(r"[A-Za-z][\w.+-]{0,20}:", source)
            what = f"starts with {scheme[0]!r}" if scheme else "is not a URL"  # may hold a secret
            raise ImageError(f"image {what}; send an http:// or https:// URL, or a data: URI")
        # Closed here: if the prediction is canceled, its thread goes on reading for a while.
        with file:
            return preprocess_image(
                file,
                self._embedder.preprocess_config,
                settings.max_image_pixels,
                settings.fast_jpeg,
                name,
            )

    async def is_healthy(self) -> bool:
        """Check that the network still gives the vectors that it gave at setup.

        A check runs after the batch that is running now and before all queued requests.
        """
        if time.monotonic() - self._health_checked > HEALTH_CHECK_SECONDS:
            self._healthy = await asyncio.to_thread(
                self._batcher.run_on_device_thread, self._embedder.is_healthy
            )
            self._health_checked = time.monotonic()
        return self._healthy

    async def _off_loop(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run `function` in a thread, so that the event loop serves other requests meanwhile."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    def _embedding(
        self,
        kind: str,
        done: BatchResult[npt.NDArray[np.float32]],
        metrics: Metrics,
        prepare_seconds: float,
    ) -> Embedding:
        metrics["prepare_ms"] = _milliseconds(prepare_seconds)
        metrics["queue_ms"] = _milliseconds(done.queue_seconds)
        metrics["encode_ms"] = _milliseconds(done.encode_seconds)
        self._observer.stages(kind, metrics)
        return Embedding(done.result, metrics)


def _milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 3)
