"""Read the model to publish, and decide on its architecture, activation and preprocessing.

A decision is taken from the source where it states it; otherwise from --model and the other
options; otherwise a default is chosen and reported. Statements that contradict each other are an
error: the wrong activation or normalization gives vectors that look right and are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clip_embed.model.config import ClipConfig
from scripts.publishing import tensor_names
from scripts.publishing.architecture import (
    HEAD_WIDTH,
    OPENAI_NAMES,
    QUICK_GELU_SUFFIX,
    Sizes,
    WantedModel,
    build_model_cfg,
    count_sizes,
    describe_difference,
    drop_defaults,
    find_named,
    name_config,
    name_sizes,
    named_configs,
    parse_config,
    read_wanted,
    same_architecture,
    sizes_of_config,
    sizes_of_tensors,
)
from scripts.publishing.errors import PublishError, redact, report
from scripts.publishing.preprocessing import OPENAI_PREPROCESSING
from scripts.publishing.sources import activation, find_source
from scripts.publishing.statement import Statement, agree

__all__ = ["OPENAI_PREPROCESSING", "Model", "read_model"]

USUAL_FLOATS = 768
"""Floats of a vector of ViT-L/14, which users of this service expect."""


@dataclass(frozen=True)
class Model:
    """A network's parameters and configuration.

    name: open_clip's name of the architecture. source: where the parameters come from. tensors:
    floating point, by open_clip's names; views of the source's file where possible. config: the
    content of `open_clip_config.json`.
    """

    name: str
    source: str
    tensors: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]


def read_model(
    source: str,
    model: str | None = None,
    *,
    quick_gelu: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    report: Callable[[str], None] = report,
) -> Model:
    """Read the model that the arguments of the command describe, and report what was recognized.

    model, quick_gelu, mean, std: None if the user does not give them.
    Raises PublishError, a SystemExit, if there is no such model or it cannot be published.
    """
    shown = redact(source)
    wanted = read_wanted(model) if model is not None else None
    options = _Options(shown, wanted, quick_gelu, {"mean": mean, "std": std})
    found = find_source(source, wanted)
    if found.statement.model_cfg is not None:
        options.decide(found.statement, {})  # before the tensors are downloaded
    contents = found.read()
    decision = options.decide(contents.statement, sizes_of_tensors(contents.tensors))
    config = ClipConfig.from_open_clip(decision.model_cfg)
    base = decision.name.removesuffix(QUICK_GELU_SUFFIX)
    tensor_names.check_fit(contents.tensors, config, shown, base)
    tensor_names.check_finite(contents.tensors, shown)  # last: it reads all values
    floats = config.embed_dim
    kind = activation(config.quick_gelu)
    report(f"{found.label}: {contents.form}; {base} with {kind}, {floats} floats")
    if floats != USUAL_FLOATS:
        report(
            f"{found.label}: vectors have {floats} floats, not the {USUAL_FLOATS} of ViT-L/14; the"
            " service works with any number, but vectors of different models cannot be compared"
        )
    if not found.untrained:
        for note in decision.notes:
            report(f"{found.label}: {note}")
    document = {"model_cfg": decision.model_cfg, "preprocess_cfg": decision.preprocess_cfg}
    return Model(decision.name, found.label, contents.tensors, document)


@dataclass(frozen=True)
class _Decision:
    """notes: the choices that nothing states."""

    name: str
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Options:
    """What the user gives beside SOURCE. shown: how messages call SOURCE."""

    shown: str
    wanted: WantedModel | None
    quick_gelu: bool | None
    normalization: Mapping[str, Sequence[float] | None]

    def decide(self, statement: Statement, sizes: Sizes) -> _Decision:
        """Bring together what the source, its tensors and the user say.

        sizes: of the tensors; empty before they are read. Raises PublishError for a contradiction.
        """
        name, base, notes = self._decide_architecture(statement, sizes)
        quick_gelu, note = self._decide_activation(statement, name)
        notes += note
        model_cfg = drop_defaults(base)
        if quick_gelu:
            # Second, as open_clip writes it; a config that has it keeps its order.
            model_cfg = {"embed_dim": base["embed_dim"], "quick_gelu": True} | model_cfg
            model_cfg["quick_gelu"] = True
            if f"{name}{QUICK_GELU_SUFFIX}" in named_configs():
                name += QUICK_GELU_SUFFIX
        elif "quick_gelu" in model_cfg:
            model_cfg["quick_gelu"] = False
        preprocess_cfg, note = self._decide_preprocessing(statement)
        return _Decision(name, model_cfg, preprocess_cfg, tuple(notes + note))

    def _decide_architecture(
        self, statement: Statement, sizes: Sizes
    ) -> tuple[str, Mapping[str, Any], list[str]]:
        wanted, stated = self.wanted, statement.model_cfg
        if wanted is not None and stated is not None:
            self._compare_configs(wanted, statement)
        if wanted is not None:
            self._compare_sizes(sizes, wanted.model_cfg, wanted.shown)
            return wanted.name.removesuffix(QUICK_GELU_SUFFIX), wanted.model_cfg, []
        if stated is not None:
            self._compare_sizes(sizes, stated, statement.by)
            return name_config(parse_config(stated, statement.by)), stated, []
        if len(sizes) < count_sizes():
            raise PublishError(
                f"{self.shown}: the weights do not fit any CLIP: tensors are missing that tell its"
                f" architecture (the others tell {', '.join(sizes) or 'nothing'}); give a complete"
                " checkpoint"
            )
        name = find_named(sizes)
        if name is not None:
            return name, named_configs()[name], []
        model_cfg = build_model_cfg(sizes, self.shown)
        parse_config(model_cfg, self.shown)
        heads = sizes["vision width"] // HEAD_WIDTH, sizes["text width"] // HEAD_WIDTH
        note = (
            f"nothing says how many attention heads it has: {heads[0]} for images and {heads[1]}"
            f" for texts were chosen, of {HEAD_WIDTH} channels each, as in OpenAI's models; give"
            " the architecture with --model FILE.json if it has others"
        )
        return name_sizes(sizes), model_cfg, [note]

    def _compare_configs(self, wanted: WantedModel, statement: Statement) -> None:
        assert statement.model_cfg is not None
        ours = parse_config(wanted.model_cfg, wanted.shown)
        theirs = parse_config(statement.model_cfg, statement.by)
        if not same_architecture(ours, theirs):
            difference = describe_difference(sizes_of_config(theirs), sizes_of_config(ours))
            heads = f"{theirs.vision.heads} and {theirs.text.heads} attention heads, not "
            difference = difference or f"{heads}{ours.vision.heads} and {ours.text.heads}"
            raise PublishError(
                f"{self.shown}: {statement.by} contradicts {wanted.shown}: it has {difference};"
                " leave --model out"
            )

    def _compare_sizes(self, sizes: Sizes, model_cfg: Mapping[str, Any], by: str) -> None:
        expected = sizes_of_config(parse_config(model_cfg, by))
        if difference := describe_difference(sizes, expected):
            name = find_named(sizes) if len(sizes) == len(expected) else None
            held = f" of {name}" if name else ""
            raise PublishError(
                f"{self.shown} contradicts {by}: its tensors{held} have {difference};"
                f" {'leave --model out' if by.startswith('--model') else 'correct the config'}, or"
                " give the checkpoint that was meant"
            )

    def _decide_activation(self, statement: Statement, name: str) -> tuple[bool, list[str]]:
        said: list[tuple[bool, str]] = []
        if statement.quick_gelu is not None:
            said.append((statement.quick_gelu, statement.by))
        if self.wanted is not None and self.wanted.quick_gelu is not None:
            said.append((self.wanted.quick_gelu, self.wanted.shown))
        if self.quick_gelu is not None:
            said.append((self.quick_gelu, "--quick-gelu" if self.quick_gelu else "--no-quick-gelu"))
        for value, by in said[1:]:
            if value != said[0][0]:
                raise PublishError(
                    f"{self.shown}: {said[0][1]} says {activation(said[0][0])}, but {by} says"
                    f" {activation(value)}; give only the one that the model was trained with"
                )
        if said:
            return said[0][0], []
        # A name means open_clip's model of that name. Without one: OpenAI's, if they have such.
        named = self.wanted is not None or (name in named_configs() and name not in OPENAI_NAMES)
        chosen = not named
        like = f"as in open_clip's {name}" if named else "as in OpenAI's models"
        other = "--no-quick-gelu" if chosen else "--quick-gelu"
        note = (
            f"nothing says the activation: {activation(chosen)} was chosen, {like}; give {other} if"
            f" the model was trained with {activation(not chosen)}"
        )
        return chosen, [note]

    def _decide_preprocessing(self, statement: Statement) -> tuple[dict[str, Any], list[str]]:
        preprocess_cfg = OPENAI_PREPROCESSING | dict(statement.preprocess_cfg)
        chosen = []
        for name, given in self.normalization.items():
            stated = statement.preprocess_cfg.get(name)
            if given is None:
                if stated is None:
                    chosen.append(name)
                continue
            if stated is not None and not agree(list(stated), list(given)):
                raise PublishError(
                    f"{self.shown}: {statement.preprocess_by} says {name} {_join(stated)}, but"
                    f" --{name} says {_join(given)}; leave --{name} out"
                )
            preprocess_cfg[name] = list(stated if stated is not None else given)
        if not chosen:
            return preprocess_cfg, []
        values = " and ".join(f"{name} {_join(preprocess_cfg[name])}" for name in chosen)
        flags = " and ".join(f"--{name}" for name in chosen)
        note = (
            f"nothing says the normalization: {values} were chosen, as in OpenAI's models; give"
            f" {flags} if the model was trained with others (look in preprocessor_config.json or"
            " open_clip_config.json beside the model)"
        )
        return preprocess_cfg, [note]


def _join(values: Sequence[float]) -> str:
    return ",".join(f"{value:.6g}" for value in values)
