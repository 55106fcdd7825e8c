"""Embed the missing parts of a data set on a Ray cluster: the body of scripts/embed_dataset.py."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

import weights
from clip_embed.checkpoint.manifest import CONFIG_NAME, TOKENIZER_NAME
from clip_embed.errors import ClipEmbedError
from clip_embed.model.config import read_config
from clip_embed.settings import Settings
from scripts.dataset import DEFAULT_CORES_PER_EMBEDDER, stages
from scripts.dataset.plan import (
    SUCCESS_NAME,
    EmbeddingJob,
    Plan,
    part_name,
    read_plan,
    write_plan,
)
from scripts.lib.storage import Storage, open_storage

log = logging.getLogger("embed_dataset")

ROOT = Path(__file__).resolve().parents[2]

# Cores that each process requests from Ray. Without GPUs, embedders and the other stages share the
# cores: a quarter is left for preparation, which is used only as fast as the embedders keep up.
PREPARE_CPUS, WRITE_CPUS = 0.25, 0.25
EMBEDDER_CPU_SHARE = 0.75
LOCAL_OBJECT_STORE_BYTES = 2 * 2**30
CHECK_THREADS = 16
LOG_SECONDS = 10.0

WORKER_ENVIRONMENT = (
    "CLIP_DEVICE",
    "CLIP_WEIGHTS_CACHE",
    "STORAGE_EMULATOR_HOST",
    "GOOGLE_APPLICATION_CREDENTIALS",
)
"""Environment variables of this machine that every worker gets."""
WORKER_MODULES = ("clip_embed", "weights.py", "scripts")
"""The project's modules that workers on other machines import."""


def run_command(arguments: argparse.Namespace) -> None:
    """Run `embed_dataset.py`. Raises SystemExit with a sentence."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("clip_embed.weights").setLevel(logging.WARNING)
    try:
        run(arguments)
    except (ClipEmbedError, ValueError, OSError) as error:
        raise SystemExit(f"embed_dataset.py: {error}") from error
    except (ray.exceptions.RayError, RuntimeError) as error:
        cause = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise SystemExit(
            f"embed_dataset.py: {cause}\n{arguments.destination} is not complete; run the same"
            " command again to continue with the parts that are missing"
        ) from error


def run(arguments: argparse.Namespace) -> None:
    """Write a plan, or continue with the one in DEST; embed the missing parts; write _SUCCESS."""
    destination = open_storage(arguments.destination)
    settings = Settings.from_environment()
    config = read_stage_config(arguments, settings, destination.location)
    plan = read_or_write_plan(config.job, destination)
    finished = find_finished_parts(plan, destination)
    pending = [number for number in range(plan.parts) if number not in finished]
    log.info(
        "plan: %s rows in %s parts, %s of them finished earlier",
        f"{plan.rows:,}",
        f"{plan.parts:,}",
        f"{len(finished):,}",
    )
    progress = _Progress(plan, finished)
    if pending:
        start_ray(arguments.address)
        try:
            progress.start_clock()
            pool = choose_embedder_pool(arguments, settings.device, len(pending))
            for written in run_pipeline(pending, config, pool):
                progress.add(written)
        finally:
            ray.shutdown()
    if progress.rows != plan.rows:
        raise RuntimeError(f"{progress.rows:,} rows were written where {plan.rows:,} were planned")
    summary = {
        "rows": progress.rows,
        "errors": progress.errors,
        "parts": plan.parts,
        "model": plan.job.model,
    }
    destination.write(SUCCESS_NAME, json.dumps(summary, indent=1).encode())
    log.info(
        "complete: %s rows, %s of them with an error", f"{plan.rows:,}", f"{progress.errors:,}"
    )


def read_stage_config(
    arguments: argparse.Namespace, settings: Settings, destination: str
) -> stages.StageConfig:
    """Read the published model's small files, and combine them with the arguments and settings."""
    location = _absolute(settings.weights) if settings.weights else ""
    with weights.pull(location, streams=1) as pull:
        manifest = pull.manifest
        open_clip_config = pull.file(CONFIG_NAME)
        tokenizer = pull.file(TOKENIZER_NAME)
    network, preprocessing = read_config(open_clip_config)
    job = EmbeddingJob(
        source=_absolute(arguments.source.rstrip("/") or "/"),
        column=arguments.text_column or arguments.image_column,
        of_paths=arguments.image_column is not None,
        id_column=arguments.id_column,
        rows_per_part=arguments.rows_per_part,
        model=stages.model_id(manifest),
    )
    return stages.StageConfig(
        job=job,
        destination=destination,
        weights=location,
        preprocessing=preprocessing,
        tokenizer=tokenizer,
        context_length=network.context_length,
        max_image_pixels=settings.max_image_pixels,
        fast_jpeg=settings.fast_jpeg,
    )


def _absolute(location: str) -> str:
    """Make a path absolute, because workers run in other directories. Keep a URL."""
    return location if "://" in location else str(Path(location).expanduser().resolve())


def read_or_write_plan(job: EmbeddingJob, destination: Storage) -> Plan:
    """Return the plan in DEST, or write one. Raises ValueError if the plan is for another job."""
    plan = read_plan(destination)
    if plan is None:
        if next(destination.names("part-"), None) is not None:
            raise ValueError(
                f"{destination.location} holds parts but no plan that describes them; give an empty"
                " DEST"
            )
        log.info("plan: reading %s", job.source)
        return write_plan(job, destination)
    for name, value in vars(job).items():
        planned = getattr(plan.job, name)
        if planned != value:
            raise ValueError(
                f"{destination.location} was begun with {name} {planned!r}, not {value!r}; run it"
                " with the former value, or give another DEST"
            )
    return plan


def find_finished_parts(plan: Plan, destination: Storage) -> dict[int, tuple[int, int]]:
    """Return part → (rows, errors) of the parts that an earlier run wrote and that are intact."""
    numbers = {part_name(number): number for number in range(plan.parts)}
    present = [numbers[name] for name in destination.names("part-") if name in numbers]
    with ThreadPoolExecutor(CHECK_THREADS, thread_name_prefix="check") as threads:
        counts = threads.map(
            lambda number: stages.check_part(number, destination.location), present
        )
        checked = dict(zip(present, counts, strict=True))
    for number, count in checked.items():
        if count is None:
            log.warning("%s is damaged and will be written again", part_name(number))
    return {number: count for number, count in checked.items() if count is not None}


# --- on the cluster ---------------------------------------------------------------------------


def start_ray(address: str | None) -> None:
    """Connect to the cluster at `address`, or start one on this machine alone."""
    # Ray reads this variable in ray.init; by default it would send usage statistics to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    passed = {name: os.environ[name] for name in WORKER_ENVIRONMENT if name in os.environ}
    common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address:
        modules = [str(ROOT / module) for module in WORKER_MODULES]
        ray.init(address=address, runtime_env={"env_vars": passed, "py_modules": modules}, **common)
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        ray.init(
            address="local",  # do not join a cluster that already runs on this machine
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            object_store_memory=min(LOCAL_OBJECT_STORE_BYTES, memory // 4),
            runtime_env={"env_vars": passed},
            **common,
        )


@dataclass(frozen=True)
class EmbedderPool:
    """count: of embedders. threads: CPU threads of each. resources: of each, as Ray names them."""

    count: int
    threads: int
    resources: dict[str, float]


def choose_embedder_pool(
    arguments: argparse.Namespace, device: str | None, pending: int
) -> EmbedderPool:
    """Choose one embedder for each GPU of the cluster, or else for every few cores."""
    cluster = ray.cluster_resources()
    cores, gpus = int(cluster.get("CPU", 0)), int(cluster.get("GPU", 0))
    if gpus and device != "cpu":
        threads, limit = 1, gpus
        resources: dict[str, float] = {"num_gpus": 1, "num_cpus": 1}
    else:
        threads = arguments.cores_per_embedder or min(DEFAULT_CORES_PER_EMBEDDER, cores)
        limit = max(1, cores // threads)
        resources = {"num_cpus": EMBEDDER_CPU_SHARE * threads}
    return EmbedderPool(min(arguments.embedders or limit, pending), threads, resources)


def run_pipeline(
    pending: list[int], config: stages.StageConfig, pool: EmbedderPool
) -> Iterator[dict[str, Any]]:
    """Run the stages. Yield {"part", "rows", "errors"} of each part as soon as it is written."""
    import ray.data  # takes seconds, and a run without pending parts does not need it

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    log.info(
        "embed: %s parts by %s embedders, %s",
        len(pending),
        pool.count,
        "a GPU each" if "num_gpus" in pool.resources else f"{pool.threads} cores each",
    )
    parts = ray.data.from_items([{"part": n} for n in pending], override_num_blocks=len(pending))
    embedder_config = replace(config, tokenizer=b"")  # embedders do not tokenize
    written = (
        parts.map(stages.prepare, fn_kwargs={"config": config}, num_cpus=PREPARE_CPUS)
        .map(
            stages.EmbedStage,
            fn_constructor_kwargs={"config": embedder_config, "threads": pool.threads},
            compute=ray.data.ActorPoolStrategy(size=pool.count, max_tasks_in_flight_per_actor=2),
            **pool.resources,
        )
        .map(stages.write, fn_kwargs={"config": config}, num_cpus=WRITE_CPUS)
    )
    yield from written.iter_rows()


class _Progress:
    """Counts rows and errors, and logs them every few seconds."""

    def __init__(self, plan: Plan, finished: dict[int, tuple[int, int]]) -> None:
        self.rows = self._rows_before = sum(rows for rows, _ in finished.values())
        self.errors = sum(errors for _, errors in finished.values())
        self._plan, self._parts = plan, len(finished)
        self.start_clock()

    def start_clock(self) -> None:
        """Measure rows per second from now on."""
        self._started = self._logged = time.perf_counter()

    def add(self, written: dict[str, Any]) -> None:
        self.rows += int(written["rows"])
        self.errors += int(written["errors"])
        self._parts += 1
        now = time.perf_counter()
        if now - self._logged > LOG_SECONDS or self._parts == self._plan.parts:
            self._logged = now
            log.info(
                "embed: %s of %s parts, %s of %s rows, %.1f rows/s",
                f"{self._parts:,}",
                f"{self._plan.parts:,}",
                f"{self.rows:,}",
                f"{self._plan.rows:,}",
                (self.rows - self._rows_before) / (now - self._started),
            )
