"""Read how a source prepares images, as open_clip's `preprocess_cfg`.

The service resizes the shorter side, crops the center and normalizes; all else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_embed.errors import ModelError
from clip_embed.inputs.preprocess import PreprocessConfig
from scripts.publishing.errors import SourceError

OPENAI_PREPROCESSING: dict[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
"""`preprocess_cfg` of OpenAI's models: the default for every model that states nothing else."""

_WAY_OUT = (
    "this service resizes the shorter side, crops the center and normalizes, so publish a model"
    " that was trained with such images"
)
_CLIP_PROCESSORS = ("CLIPImageProcessor", "CLIPFeatureExtractor")
_TRANSFORMERS_SIZE = 224
"""transformers' default of `size` and `crop_size`."""

_PILLOW_FILTERS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}


def from_open_clip(preprocess_cfg: object, by: str) -> dict[str, Any]:
    """Return the stated entries of open_clip's `preprocess_cfg`. Raises SourceError."""
    if not isinstance(preprocess_cfg, Mapping):
        raise SourceError(f"{by}: preprocess_cfg is {preprocess_cfg!r}; expected an object")
    mode = preprocess_cfg.get("mode") or "RGB"
    if mode != "RGB":
        raise SourceError(f"{by}: images of mode {mode!r} cannot be prepared here; {_WAY_OUT}")
    resize_mode = preprocess_cfg.get("resize_mode") or "shortest"
    if resize_mode != "shortest":
        raise SourceError(f"{by}: resize_mode {resize_mode!r} cannot be prepared here; {_WAY_OUT}")
    stated = {
        key: _plain(preprocess_cfg[key])
        for key in OPENAI_PREPROCESSING
        if preprocess_cfg.get(key) is not None
    }
    return _checked(stated, by)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def from_transformers(processor: Mapping[str, Any], image_size: int, by: str) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json` as `preprocess_cfg`.

    image_size: of the model's input, in pixels. Raises SourceError.
    """
    kind = processor.get("image_processor_type") or processor.get("feature_extractor_type")
    if kind is not None and not str(kind).startswith(_CLIP_PROCESSORS):
        raise SourceError(
            f"{by}: images are prepared by {kind}, not CLIPImageProcessor; {_WAY_OUT}"
        )
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if processor.get(step) is False:
            raise SourceError(f"{by}: {step} is false; {_WAY_OUT}")
    factor = processor.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor - 1 / 255) > 1e-8:
        raise SourceError(f"{by}: rescale_factor is {factor!r}, not 1/255; {_WAY_OUT}")
    _check_sides(processor, image_size, by)
    stated: dict[str, Any] = {"resize_mode": "shortest"}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if processor.get(theirs) is not None:
            stated[ours] = processor[theirs]
    resample = processor.get("resample")
    if resample is not None:
        if resample not in _PILLOW_FILTERS:
            raise SourceError(
                f"{by}: resample is {resample!r}; this service has 2 (bilinear) and 3 (bicubic), so"
                " publish a model that was trained with one of them"
            )
        stated["interpolation"] = _PILLOW_FILTERS[resample]
    return _checked(stated, by)


def _check_sides(processor: Mapping[str, Any], image_size: int, by: str) -> None:
    """Check that the shorter side and the crop are both the model's input size."""
    size = processor.get("size", _TRANSFORMERS_SIZE)
    crop = processor.get("crop_size", _TRANSFORMERS_SIZE)
    for option in ("use_square_size", "default_to_square", "do_pad"):
        if processor.get(option):
            raise SourceError(f"{by}: {option} is true; {_WAY_OUT}")
    if size not in (image_size, {"shortest_edge": image_size}):
        raise SourceError(
            f"{by}: size is {size!r}, but the model reads {image_size} pixels; {_WAY_OUT}"
        )
    if crop not in (image_size, {"height": image_size, "width": image_size}):
        raise SourceError(
            f"{by}: crop_size is {crop!r}, but the model reads {image_size} pixels; {_WAY_OUT}"
        )


def _checked(stated: dict[str, Any], by: str) -> dict[str, Any]:
    try:
        config = PreprocessConfig.from_open_clip(OPENAI_PREPROCESSING | stated, 224)
    except ModelError as error:
        raise SourceError(f"{by}: {error}; {_WAY_OUT}") from error
    if min(config.std) <= 0:
        raise SourceError(f"{by}: std is {list(config.std)}; expected three positive numbers")
    return stated


def parse_triple(text: str, option: str) -> list[float]:
    """Parse the value of --mean or --std: red, green and blue. Raises SourceError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    in_range = all(0 < v <= 1 or (v == 0 and option == "--mean") for v in values)
    if len(values) != 3 or not in_range:
        raise SourceError(
            f"{option} is {text!r}; give three numbers in 0–1, for red, green and blue, as in"
            f" {option} 0.5,0.5,0.5"
        )
    return values
