"""Read how a source prepares images, as open_clip's `preprocess_cfg`.

The service resizes the shorter side, crops the center and normalizes; all else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clip_embed.errors import ModelError
from clip_embed.inputs.preprocess import PreprocessConfig
from scripts.publishing.errors import PublishError, show

OPENAI_PREPROCESSING: dict[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
"""`preprocess_cfg` of OpenAI's models: the default for every model that states nothing else."""

_RANGES = {"mean": (0.0, 1.0), "std": (0.001, 1.0)}
"""Name → the lowest and highest value of a channel, for pixels from 0 to 1."""

_WAY_OUT = (
    "this service resizes the shorter side, crops the center and normalizes, so publish a model"
    " that was trained with such images"
)
_CLIP_PROCESSORS = ("CLIPImageProcessor", "CLIPFeatureExtractor")
_TRANSFORMERS_SIZE = 224
"""transformers' default of `size` and `crop_size`."""

_PILLOW_FILTERS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}


def from_open_clip(preprocess_cfg: object, by: str) -> dict[str, Any]:
    """Return the stated entries of open_clip's `preprocess_cfg`. Raises PublishError."""
    if not isinstance(preprocess_cfg, Mapping):
        raise PublishError(f"{by}: preprocess_cfg is {show(preprocess_cfg)}; expected an object")
    mode = preprocess_cfg.get("mode") or "RGB"
    if mode != "RGB":
        raise PublishError(f"{by}: images of mode {show(mode)} cannot be prepared here; {_WAY_OUT}")
    resize_mode = preprocess_cfg.get("resize_mode") or "shortest"
    if resize_mode != "shortest":
        raise PublishError(
            f"{by}: resize_mode {show(resize_mode)} cannot be prepared here; {_WAY_OUT}"
        )
    stated = {
        key: _plain(preprocess_cfg[key])
        for key in OPENAI_PREPROCESSING
        if preprocess_cfg.get(key) is not None
    }
    for name in _RANGES:
        _check_triple(stated.get(name), name, name, by)
    return _checked(stated, by)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def from_transformers(processor: Mapping[str, Any], image_size: int, by: str) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json` as `preprocess_cfg`.

    image_size: of the model's input, in pixels. Raises PublishError.
    """
    kind = processor.get("image_processor_type") or processor.get("feature_extractor_type")
    if kind is not None and not str(kind).startswith(_CLIP_PROCESSORS):
        shown = str(kind)[:100]
        raise PublishError(
            f"{by}: images are prepared by {shown}, not CLIPImageProcessor; {_WAY_OUT}"
        )
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        value = processor.get(step, True)
        if value is not True:  # transformers takes null and 0 for false
            raise PublishError(f"{by}: {step} is {json.dumps(value)[:100]}; {_WAY_OUT}")
    factor = processor.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not abs(factor - 1 / 255) <= 1e-8:
        raise PublishError(f"{by}: rescale_factor is {show(factor)}, not 1/255; {_WAY_OUT}")
    _check_sides(processor, image_size, by)
    stated: dict[str, Any] = {"resize_mode": "shortest", "interpolation": "bicubic"}  # defaults
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if processor.get(theirs) is not None:
            _check_triple(processor[theirs], theirs, ours, by)
            stated[ours] = processor[theirs]
    if "resample" in processor:
        resample = processor["resample"]
        if not isinstance(resample, int | str) or resample not in _PILLOW_FILTERS:
            raise PublishError(
                f"{by}: resample is {json.dumps(resample)[:100]}; this service has 2 (bilinear) and"
                " 3 (bicubic), so publish a model that was trained with one of them"
            )
        stated["interpolation"] = _PILLOW_FILTERS[resample]
    return _checked(stated, by)


def _check_sides(processor: Mapping[str, Any], image_size: int, by: str) -> None:
    """Check that the shorter side and the crop are both the model's input size."""
    size = processor.get("size", _TRANSFORMERS_SIZE)
    crop = processor.get("crop_size", _TRANSFORMERS_SIZE)
    for option in ("use_square_size", "default_to_square", "do_pad"):
        if processor.get(option):
            raise PublishError(f"{by}: {option} is true; {_WAY_OUT}")
    if size not in (image_size, {"shortest_edge": image_size}):
        raise PublishError(
            f"{by}: size is {show(size)}, but the model reads {image_size} pixels; {_WAY_OUT}"
        )
    if crop not in (image_size, {"height": image_size, "width": image_size}):
        raise PublishError(
            f"{by}: crop_size is {show(crop)}, but the model reads {image_size} pixels; {_WAY_OUT}"
        )


def _checked(stated: dict[str, Any], by: str) -> dict[str, Any]:
    try:
        PreprocessConfig.from_open_clip(OPENAI_PREPROCESSING | stated, 224)
    except ModelError as error:
        raise PublishError(f"{by}: {error}; {_WAY_OUT}") from error
    return stated


def _check_triple(values: object, shown: str, name: str, by: str) -> None:
    """Raise PublishError unless `values` is None or three numbers in the range of `name`."""
    if values is not None and not _is_triple(values, name):
        lowest, highest = _RANGES[name]
        raise PublishError(
            f"{by}: {shown} is {show(values)}; expected three numbers from {lowest:g} to"
            f" {highest:g}, for pixels from 0 to 1"
        )


def _is_triple(values: object, name: str) -> bool:
    lowest, highest = _RANGES[name]
    return (
        isinstance(values, Sequence)
        and len(values) == 3
        # NaN is in no range, and true is no number.
        and all(type(v) in (int, float) and lowest <= v <= highest for v in values)
    )


def parse_triple(text: str, option: str) -> list[float]:
    """Parse the value of --mean or --std: red, green and blue. Raises PublishError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    name = option.removeprefix("--")
    if not _is_triple(values, name):
        lowest, highest = _RANGES[name]
        raise PublishError(
            f"{option} is {show(text)}; give three numbers from {lowest:g} to {highest:g}, for red,"
            f" green and blue, as in {option} 0.5,0.5,0.5"
        )
    return values
