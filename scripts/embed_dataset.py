"""Embed a whole catalogue on a Ray cluster, with the weights and the numbers of the service.

    embed_dataset.py SOURCE DEST [--text-column NAME | --image-column NAME] [--address ADDRESS]

SOURCE  a folder or gs:// prefix of pictures; or, with a column named, a .parquet, .csv or .jsonl
        file, or a folder or prefix of such files. Files whose name begins with "." or "_" are
        passed over. Paths of pictures in a table are gs://…, or relative to the table's folder.
DEST    a folder or gs:// prefix: part-N.parquet with id, vector (float32, null beside an error) and
        error. Complete once _SUCCESS is there, which is written last.

CLIP_WEIGHTS names the model, as for the service. Run the same command again to go on after an
interruption: finished parts are not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
# Nothing is told to anybody, and nothing listens that nobody asked for.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

import weights
from clip_embed import image, manifest
from clip_embed.config import read_config
from clip_embed.errors import ClipEmbedError
from dataset import plan as plans
from dataset import stages
from dataset.places import Place, open_place

log = logging.getLogger("embed_dataset")

# A part is prepared whole before it is embedded, and is what an interruption may cost: 1,024
# pictures are 154 MB of pixels in flight and 3 MB of vectors, 8,192 texts 25 MB of vectors.
PICTURES_PER_PART = 1024
TEXTS_PER_PART = 8192
PICTURES_PER_PART_LIMIT = 8192  # pixels of a part travel in one value of Arrow: less than 2 GB

# What each process asks Ray for, in cores. Without GPUs embedders and preparation share the cores:
# preparation gets a quarter, which it uses only as far as embedders keep up with it.
PREPARE_CPUS, WRITE_CPUS = 0.25, 0.25
EMBEDDER_SHARE = 0.75
LOCAL_OBJECT_STORE = 2 * 2**30
# Settings of this machine that hold for every worker.
PASSED_ON = (
    "CLIP_DEVICE",
    "CLIP_WEIGHTS_CACHE",
    "STORAGE_EMULATOR_HOST",
    "GOOGLE_APPLICATION_CREDENTIALS",
)
REPORT_SECONDS = 10.0


def main() -> None:
    arguments = parse(sys.argv[1:])
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
            " command again to go on with the parts that are missing"
        ) from error


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DEST")
    column = parser.add_mutually_exclusive_group()
    column.add_argument("--text-column", metavar="NAME", help="embed the texts of this column")
    column.add_argument("--image-column", metavar="NAME", help="embed the pictures it names")
    parser.add_argument("--id-column", metavar="NAME", help="default: file:row, counted from 0")
    parser.add_argument(
        "--rows-per-part",
        type=int,
        metavar="N",
        help=f"default: {PICTURES_PER_PART} pictures, {TEXTS_PER_PART} texts",
    )
    parser.add_argument("--address", help="of a Ray cluster; default: this machine alone")
    parser.add_argument("--embedders", type=int, metavar="N", help="default: as many as fit")
    parser.add_argument(
        "--cores-per-embedder",
        type=int,
        metavar="N",
        help="without GPUs; default: 4, or all if there are fewer",
    )
    arguments = parser.parse_args(words)
    if arguments.id_column and not (arguments.text_column or arguments.image_column):
        parser.error("--id-column needs --text-column or --image-column")
    if arguments.rows_per_part is None:
        arguments.rows_per_part = TEXTS_PER_PART if arguments.text_column else PICTURES_PER_PART
    most = 2**20 if arguments.text_column else PICTURES_PER_PART_LIMIT
    if not 1 <= arguments.rows_per_part <= most:
        parser.error(f"--rows-per-part is {arguments.rows_per_part}; give 1 to {most}")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Plan, or take up the plan that is there; embed what is missing; say that it is complete."""
    destination = open_place(arguments.destination)
    work = get_work(arguments, destination.location)
    plan = get_plan(work.task, destination)
    finished = find_finished(plan, destination)
    pending = [number for number in range(plan.parts) if number not in finished]
    log.info(
        "plan: %s rows in %s parts, %s of them finished earlier",
        f"{plan.rows:,}",
        f"{plan.parts:,}",
        f"{len(finished):,}",
    )
    rows = sum(count for count, _ in finished.values())
    errors = sum(failed for _, failed in finished.values())
    if pending:
        start_ray(arguments.address)
        try:
            progress = _Progress(plan, rows, errors, len(finished))
            for done in embed(pending, work, arguments):
                progress.add(done)
            rows, errors = progress.rows, progress.errors
        finally:
            ray.shutdown()
    if rows != plan.rows:
        raise RuntimeError(f"{rows:,} rows were written where {plan.rows:,} were planned")
    summary = {"rows": rows, "errors": errors, "parts": plan.parts, "model": plan.task.model}
    destination.write(plans.SUCCESS_NAME, json.dumps(summary, indent=1).encode())
    log.info("complete: %s rows, %s of them with an error", f"{rows:,}", f"{errors:,}")


def get_work(arguments: argparse.Namespace, destination: str) -> stages.Work:
    """What the stages need of the published model: all but its tensors."""
    location = os.environ.get("CLIP_WEIGHTS") or ""
    if location and "://" not in location:
        location = str(Path(location).expanduser().resolve())
    source = arguments.source.rstrip("/") or "/"
    if "://" not in source:
        source = str(Path(source).expanduser().resolve())
    with weights.pull(location, streams=1) as pull:
        published = pull.manifest
        config = pull.file(manifest.CONFIG_NAME)
        tokenizer = pull.file(manifest.TOKENIZER_NAME)
    network, preprocessing = read_config(config)
    task = plans.Task(
        source=source,
        column=arguments.text_column or arguments.image_column,
        of_paths=arguments.image_column is not None,
        id_column=arguments.id_column,
        rows_per_part=arguments.rows_per_part,
        model=stages.model_of(published),
    )
    return stages.Work(
        task,
        destination,
        location,
        preprocessing,
        tokenizer,
        network.context_length,
        image.max_pixels(os.environ.get("CLIP_MAX_IMAGE_PIXELS")),
    )


def get_plan(task: plans.Task, destination: Place) -> plans.Plan:
    """The plan in DEST; made now if there is none. Raises ValueError if it is for another task."""
    plan = plans.read_plan(destination)
    if plan is None:
        if next(destination.names("part-"), None) is not None:
            raise ValueError(
                f"{destination.location} holds parts and no plan that says of what; give an empty"
                " DEST"
            )
        log.info("plan: reading %s", task.source)
        return plans.write_plan(task, destination)
    for name, wanted in vars(task).items():
        there = getattr(plan.task, name)
        if there != wanted:
            raise ValueError(
                f"{destination.location} was begun with {name} {there!r}, not {wanted!r}; run it as"
                " it was begun, or give another DEST"
            )
    return plan


def find_finished(plan: plans.Plan, destination: Place) -> dict[int, tuple[int, int]]:
    """Part → rows and errors, of those that are there whole; a damaged one will be done again."""
    names = {plans.part_name(number): number for number in range(plan.parts)}
    there = [names[name] for name in destination.names("part-") if name in names]
    with ThreadPoolExecutor(16, thread_name_prefix="check") as threads:
        found = threads.map(lambda number: stages.check(number, destination.location), there)
        checked = dict(zip(there, found, strict=True))
    for number, counts in checked.items():
        if counts is None:
            log.warning("%s is damaged and will be written again", plans.part_name(number))
    return {number: counts for number, counts in checked.items() if counts is not None}


def start_ray(address: str | None) -> None:
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    common: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address:
        modules = [ROOT / "clip_embed", ROOT / "weights.py", ROOT / "scripts" / "dataset"]
        environment = {"env_vars": passed, "py_modules": [str(module) for module in modules]}
        ray.init(address=address, runtime_env=environment, **common)
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        ray.init(
            address="local",  # and not whatever cluster was started on this machine before
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            object_store_memory=min(LOCAL_OBJECT_STORE, memory // 4),
            runtime_env={"env_vars": passed},
            **common,
        )


def embed(
    pending: list[int], work: stages.Work, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The pipeline: {"part", "rows", "errors"} of each part, as soon as it is written."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    resources = ray.cluster_resources()
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if os.environ.get("CLIP_DEVICE") == "cpu":
        gpus = 0
    if gpus:
        threads, most = 1, gpus
        share: dict[str, float] = {"num_gpus": 1, "num_cpus": 1}
    else:
        threads = arguments.cores_per_embedder or min(4, cores)
        most = max(1, cores // threads)
        share = {"num_cpus": EMBEDDER_SHARE * threads}
    count = min(arguments.embedders or most, len(pending))
    log.info(
        "embed: %s parts by %s embedders, %s",
        len(pending),
        count,
        "a GPU each" if gpus else f"{threads} cores each",
    )
    parts = ray.data.from_items([{"part": n} for n in pending], override_num_blocks=len(pending))
    written = (
        parts.map(stages.prepare, fn_kwargs={"work": work}, num_cpus=PREPARE_CPUS)
        .map(
            stages.Embed,
            fn_constructor_kwargs={"work": replace(work, tokenizer=b""), "threads": threads},
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            **share,
        )
        .map(stages.write, fn_kwargs={"work": work}, num_cpus=WRITE_CPUS)
    )
    yield from written.iter_rows()


class _Progress:
    """Counts what is written, and says so now and then."""

    def __init__(self, plan: plans.Plan, rows: int, errors: int, parts: int) -> None:
        self.rows, self.errors = rows, errors
        self._plan, self._parts, self._before = plan, parts, rows
        self._started = self._said = time.perf_counter()

    def add(self, done: dict[str, Any]) -> None:
        self.rows += int(done["rows"])
        self.errors += int(done["errors"])
        self._parts += 1
        now = time.perf_counter()
        if now - self._said > REPORT_SECONDS or self._parts == self._plan.parts:
            self._said = now
            rate = (self.rows - self._before) / (now - self._started)
            log.info(
                "embed: %s of %s parts, %s of %s rows, %.1f rows/s",
                f"{self._parts:,}",
                f"{self._plan.parts:,}",
                f"{self.rows:,}",
                f"{self._plan.rows:,}",
                rate,
            )


if __name__ == "__main__":
    main()
