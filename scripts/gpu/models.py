"""Write one random network in the format of each contender."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

import torch

from clip_embed.model.clip import Clip
from clip_embed.model.config import ClipConfig
from scripts.benchmarks.peers import convert
from scripts.gpu.part import Recorder, Task
from scripts.lib.cog_server import ROOT
from scripts.lib.storage import open_storage
from scripts.publishing import DEFAULT_MODEL
from scripts.publishing.architecture import read_wanted
from scripts.publishing.model import OPENAI_PREPROCESSING, Model
from scripts.publishing.publish import publish

TINY = ROOT / "tests" / "data" / "tiny.json"
SEED = 0

Tensors = dict[str, torch.Tensor]


def run(task: Task, record: Recorder) -> None:
    """Write the models, and record the seconds for each."""
    wanted = read_wanted(str(TINY) if task.tiny else DEFAULT_MODEL)
    config = ClipConfig.from_open_clip(wanted.model_cfg)
    document = {"model_cfg": wanted.model_cfg, "preprocess_cfg": OPENAI_PREPROCESSING}
    task.models.mkdir()

    def timed(row: str, write: Callable[[], object]) -> None:
        begin = time.perf_counter()
        with record.section(row):
            write()
            record.figure("time to make the models", row, time.perf_counter() - begin, "s")

    tensors: Tensors = {}
    timed("random weights", lambda: tensors.update(random_weights(config, task.device)))
    model = Model(wanted.name, f"random weights {SEED}", tensors, document)
    timed("in this service's format", lambda: publish(model, open_storage(task.ours)))
    if not task.libraries:
        return
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    timed("in open_clip's format", lambda: write_open_clip(task, wanted.model_cfg, halves))
    timed("in transformers' format", lambda: write_transformers(task, config, halves))


def random_weights(config: ClipConfig, device: str) -> Tensors:
    """Return float32 tensors on the host with values that float16 holds, as in OpenAI's release.

    They are drawn on `device`, which is quicker for 428 million. The standard deviations are those
    with which CLIP's text tower is initialized, so that activations are of the usual sizes (Radford
    et al., 2021, and openai/CLIP's `initialize_parameters`).
    """
    generator = torch.Generator(device).manual_seed(SEED)
    parameters = dict(Clip(config).named_parameters())
    return {
        name: _draw(name, parameter.shape, config, generator).half().float().cpu()
        for name, parameter in parameters.items()
    }


def _draw(
    name: str, shape: torch.Size, config: ClipConfig, generator: torch.Generator
) -> torch.Tensor:
    values = torch.randn(shape, generator=generator, device=generator.device)
    if name == "logit_scale":
        return torch.full_like(values, math.log(1 / 0.07))
    if "ln_" in name and name.endswith("weight"):
        return 1 + 0.02 * values
    if name.endswith("bias"):
        return 0.02 * values
    return _deviation(name, shape, config) * values


def _deviation(name: str, shape: torch.Size, config: ClipConfig) -> float:
    """Return the standard deviation of a matrix."""
    tower = config.vision if name.startswith("visual.") else config.text
    if name.endswith(("out_proj.weight", "c_proj.weight")):
        return float(tower.width**-0.5 * (2 * tower.layers) ** -0.5)
    if name.endswith("c_fc.weight"):
        return float((2 * tower.width) ** -0.5)
    if name.endswith("conv1.weight"):
        return math.prod(shape[1:]) ** -0.5
    if name == "token_embedding.weight":
        return 0.02
    if name == "positional_embedding":
        return 0.01
    return float(tower.width**-0.5)


def write_open_clip(task: Task, model_cfg: object, tensors: Tensors) -> None:
    """Write a checkpoint, and the architecture as open_clip reads it from a file."""
    folder = task.models / "open_clip"
    folder.mkdir()
    convert.write_open_clip(folder, tensors)
    (folder / "check_gpu.json").write_text(json.dumps(model_cfg))


def write_transformers(task: Task, config: ClipConfig, tensors: Tensors) -> None:
    """Write a directory for from_pretrained, in float16."""
    folder = task.models / "transformers"
    folder.mkdir()
    convert.write_transformers(folder, config, tensors)
