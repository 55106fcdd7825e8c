"""The Cog boundary: `setup` loads CLIP, `predict` embeds. Wiring, and nothing else.

Set-up: `weights.pull` starts fetching at once, and the heavy imports run meanwhile → verified
blocks become tensors → the network adopts them → both towers are warmed.
A prediction: `image.prepare` in a thread, or `text.tokenize` → `batching` → one forward pass for
all that wait → 768 floats.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import coglet
from cog import BasePredictor, Input, Path, URLPath, concurrent

import weights
from clip_embed import cpus, errors, host_memory, lean_torch, leftovers, manifest, proxies

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

FETCHERS = 64
"""Images fetched at once, as many as there are places: a slow web server holds up only one."""

SHORT_TEXT = 1000
"""Characters that are tokenized in 0.1 to 2 ms: a thread would cost a short text more than that."""

HEALTH_SECONDS = 1.0
"""What a health check found is the answer for so long: set-up has just embedded the same, so the
first look after it costs nothing. Looks that come while a check runs each make one of their own."""


class Predictor(BasePredictor):
    """Embeds text and images with OpenAI's CLIP ViT-L/14, or whichever CLIP is published."""

    def setup(self) -> None:
        """Pull the weights named by CLIP_WEIGHTS and make ready.

        Raises WeightsError, ModelError or ValueError; Cog shows its sentence in /health-check.
        """
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        clock = _Clock()
        # cog.yaml sets it for Cog's server, which runs by now; obstore, which would obey it too,
        # may use every core.
        os.environ.pop("TOKIO_WORKER_THREADS", None)
        with (
            _no_garbage_collection(),
            weights.pull(
                os.environ.get("CLIP_WEIGHTS"), cache=os.environ.get("CLIP_WEIGHTS_CACHE")
            ) as pull,
            ThreadPoolExecutor(1, thread_name_prefix="load") as loader,
        ):
            memory = host_memory.HostMemory()
            gpu_is_likely = _gpu_is_likely()
            if not gpu_is_likely:
                memory.prepare(pull.wait_landed)
            # Imported here, not above: the pull is on its way meanwhile. torch takes seconds, in
            # which a core has time for the tokenizer.
            from clip_embed import config, image, text

            def read_tokenizer() -> text.Tokenizer:
                network, _ = config.read_config(pull.file(manifest.CONFIG_NAME))
                tokenizer = text.Tokenizer(
                    pull.file(manifest.TOKENIZER_NAME), network.context_length
                )
                tokenizer.tokenize("warm up")
                return tokenizer

            tokenizer = loader.submit(read_tokenizer)
            if not gpu_is_likely:
                lean_torch.load_libraries()
            lean_torch.import_torch()
            import torch

            from clip_embed import tensors
            from clip_embed.device import choose_device, choose_dtype

            clock.lap("import torch")
            torch.set_num_threads(cpus.usable_cpus())
            device = choose_device(os.environ.get("CLIP_DEVICE"))
            dtype = choose_dtype(device)
            loading = loader.submit(tensors.load, pull.blocks(), device, dtype, memory)
            from clip_embed import batching, embedder, output

            self._embedder = embedder.Embedder.build(
                pull.file(manifest.CONFIG_NAME), loading.result()
            )
            self._tokenizer = tokenizer.result()
            clock.lap("load")
            self._batcher = batching.Batcher()
            self._batcher.run(self._embedder.warm_up)
            self._healthy, self._checked = True, time.monotonic()
            clock.lap("warm up")
        # A batch at most: on a CPU one or two seconds of work, since larger ones are hardly faster
        # and hold up whoever comes next. Those of a GPU are chosen, not measured.
        tokens, images = (4096, 16) if device.type == "cuda" else (1024, 2)
        self._texts = batching.Lane(self._embedder.embed_texts, tokens, lambda text: text.end + 1)
        self._images = batching.Lane(self._embedder.embed_images, images, lambda _: 1)
        self._prepare_image = image.prepare
        self._max_pixels = image.max_pixels(os.environ.get("CLIP_MAX_IMAGE_PIXELS"))
        if coglet.server.active:
            _fetch_by_proxy()
            self._temporary = leftovers.own_directory()
            self._leftovers = leftovers.Leftovers(self._temporary.name)
        self._threads = ThreadPoolExecutor(cpus.usable_cpus(), thread_name_prefix="prepare")
        in_one_message = coglet.server.active and output.one_message_stays_flat()
        self._finish = output.as_one_message if in_one_message else output.as_list
        print(
            f"ready: {pull.manifest.model} ({pull.manifest.source}),"
            f" {self._embedder.config.embed_dim} floats, {device}, {str(dtype)[6:]};"
            f" {clock}; pulled {pull.stats.line()}",
            flush=True,
        )
        pull.keep()
        if coglet.server.active:
            # Cog hears of the end of set-up on another way than of what it printed: without a
            # pause the line above is missing from /health-check one time in eight.
            time.sleep(0.03)

    async def healthcheck(self) -> bool:
        """Cog asks for /health-check: does the network still say what it said at set-up?

        A check runs after the batch that is running now, before all that wait.
        """
        if time.monotonic() - self._checked > HEALTH_SECONDS:
            self._healthy = await asyncio.to_thread(self._batcher.run, self._embedder.is_healthy)
            self._checked = time.monotonic()
        return self._healthy

    # Batches form from what waits, so this bounds memory, not speed. Cog frees a place a little
    # after its answer has left, so as many clients as there are places meet 409 again and again:
    # hence twice as many as the 32 that clients should keep busy. Cog reads the number when an
    # image is built; COG_MAX_CONCURRENCY overrides it.
    @concurrent(max=64)
    async def predict(
        self,
        text: str | None = Input(
            description="Text to embed. CLIP reads the first 75 tokens, about 50 words.",
            default=None,
        ),
        image: Path | None = Input(
            description="Image to embed: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC. If both"
            " are sent, the image is embedded.",
            default=None,
        ),
    ) -> list[float]:
        """The CLIP feature of the image, or of the text: 768 floats, not normalised.

        Raises InputError for input that cannot be embedded; the service stays ready.
        """
        started = time.perf_counter()
        if image is not None:
            if not isinstance(image, os.PathLike):
                raise errors.ImageError(
                    f"image is {str(image)[:80]!r}; send an http:// or https:// URL, or a data: URI"
                )
            if text:
                print("text is ignored: an image was sent too")
            try:
                pixels = await self._off_loop(
                    self._prepare_image, image, self._embedder.preprocessing, self._max_pixels
                )
            finally:
                if coglet.server.active:
                    self._leftovers.discard(image)
            prepared = time.perf_counter()
            done = await self._batcher.submit(self._images, pixels)
            self.record_metric("image_width", pixels.width)
            self.record_metric("image_height", pixels.height)
        elif text:
            if len(text) <= SHORT_TEXT:
                tokens = self._tokenizer.tokenize(text)
            else:
                tokens = await self._off_loop(self._tokenizer.tokenize, text)
            prepared = time.perf_counter()
            done = await self._batcher.submit(self._texts, tokens)
            self.record_metric("tokens", len(tokens.ids))
            self.record_metric("truncated", tokens.truncated)
            if tokens.truncated:
                print(f"text is cut: CLIP reads its first {len(tokens.ids) - 2} tokens")
        else:
            raise errors.NoInputError(
                "nothing to embed: send text, such as 'a red bicycle', or an image"
            )
        self.record_metric("prepare_ms", round(1e3 * (prepared - started), 3))
        self.record_metric("queue_ms", round(1e3 * done.queue_seconds, 3))
        self.record_metric("encode_ms", round(1e3 * done.encode_seconds, 3))
        return self._finish(done.result)  # type: ignore[no-any-return]

    async def _off_loop(
        self,
        function: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **keywords: Arguments.kwargs,
    ) -> Result:
        """Run `function` in a thread, so that others' requests go on meanwhile."""
        call = functools.partial(function, *arguments, **keywords)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _fetch_by_proxy() -> None:
    """Have Cog's preparation of inputs leave the fetching of images to threads of ours.

    It would start a thread for each, in one that it interrupts when the client hangs up: after some
    700 of those the service answered nobody any more (clip_embed/proxies.py).
    """
    validate, helpers = Path.validate, proxies.Proxies(FETCHERS)

    def fetch(value: object) -> object:
        path = validate(value)
        return path.convert() if isinstance(path, URLPath) else path

    Path.validate = staticmethod(lambda value: helpers.call(fetch, value))


def _gpu_is_likely() -> bool:
    """Before torch can say: CLIP_DEVICE, or NVIDIA's driver. Only a guess, for what is prepared."""
    wanted = os.environ.get("CLIP_DEVICE")
    return wanted == "cuda" or (wanted != "cpu" and os.path.exists("/dev/nvidiactl"))


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Importing torch makes objects and no garbage, and 12% of it is looking for some."""
    gc.disable()
    try:
        yield
        gc.freeze()  # what is here now stays: no collection need look at it again
    finally:
        gc.enable()


class _Clock:
    """Seconds per stage of set-up."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._laps: list[str] = []

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._laps.append(f"{stage} {now - self._last:.2f} s")
        self._last = now

    def __str__(self) -> str:
        return f"set-up {self._last - self._started:.2f} s ({', '.join(self._laps)})"
