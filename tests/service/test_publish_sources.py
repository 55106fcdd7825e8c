"""Publishing: every form of a checkpoint gives the vectors of the library that wrote it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from open_clip import pretrained

from scripts import publish_weights
from scripts.publishing import shards
from scripts.publishing.architecture import read_wanted
from scripts.publishing.pretrained_tags import PretrainedTag, find_tag
from tests.helpers import checkpoints
from tests.helpers.checkpoints import MINI, OTHER_MEAN, OTHER_STD, Reference, Tensors
from tests.helpers.paths import ROOT
from tests.helpers.result_tables import SOURCES


@pytest.fixture
def publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Return a function that runs the command into `tmp_path / "out"` and returns its lines."""

    def run(source: object, *options: str) -> list[str]:
        destination = str(tmp_path / "out")
        monkeypatch.setattr("sys.argv", ["publish_weights.py", str(source), destination, *options])
        capsys.readouterr()
        publish_weights.main()
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def refuse(publish: Callable[..., list[str]], tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs the command, which must fail, and returns its sentence."""

    def run(source: object, *options: str) -> str:
        with pytest.raises(SystemExit) as caught:
            publish(source, *options)
        message = str(caught.value.code)
        assert "\n" not in message
        assert "Traceback" not in message
        assert "weights_only" not in message
        assert not (tmp_path / "out").exists(), "something was written"
        return message

    return run


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a TorchScript archive as OpenAI's."""
    path = tmp_path_factory.mktemp("openai") / "ViT-mini.pt"
    checkpoints.save_openai_archive(path)
    return path


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    return checkpoints.transformers_model()


@pytest.fixture(scope="module")
def network() -> Any:
    return checkpoints.open_clip_model()


@pytest.fixture(scope="module")
def state(network: Any) -> Tensors:
    return dict(network.state_dict())


@pytest.fixture
def mini(tmp_path: Path) -> str:
    """Return a JSON file of the architecture, for --model."""
    (tmp_path / "mini.json").write_text(json.dumps(MINI))
    return str(tmp_path / "mini.json")


@pytest.fixture
def compare(tmp_path: Path) -> Callable[[str, list[str], Reference], None]:
    """Return a function that compares what was published with the vectors of a library."""

    def run(form: str, lines: list[str], reference: Reference) -> None:
        vectors = checkpoints.embed_with_service(tmp_path / "out", tmp_path)
        difference, cosine = reference.difference(vectors)
        recognized = lines[0].partition(": ")[2]
        SOURCES.append((form, recognized, vectors.shape[1], difference))
        assert difference <= 1e-4
        assert cosine >= 0.999999

    return run


def manifest(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_bytes())  # type: ignore[no-any-return]


def config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "open_clip_config.json").read_bytes())  # type: ignore[no-any-return]


# --- OpenAI -------------------------------------------------------------------------------------


def test_openai_archive(archive: Path, publish: Any, compare: Any, tmp_path: Path) -> None:
    """It is published as `clip.load` loads it, with QuickGELU; nothing has to be said."""
    lines = publish(archive)
    assert lines[0] == (
        "ViT-mini.pt: OpenAI's TorchScript archive; ViT-128x2-8 with QuickGELU, 96 floats"
    )
    assert lines[1].startswith("ViT-mini.pt: vectors have 96 floats, not the 768 of ViT-L/14; ")
    assert lines[1].endswith("but vectors of different models cannot be compared")
    assert not any("nothing says the" in line for line in lines)
    assert manifest(tmp_path / "out")["source"] == "ViT-mini.pt"
    compare("OpenAI's TorchScript archive", lines, checkpoints.openai_reference(archive))


def test_openai_state_dict(archive: Path, publish: Any, compare: Any, tmp_path: Path) -> None:
    torch.save(checkpoints.openai_state_dict(archive), tmp_path / "state.pt")
    lines = publish(tmp_path / "state.pt")
    assert "OpenAI's state dict" in lines[0]
    assert not any("nothing says the" in line for line in lines)
    compare("OpenAI's state dict", lines, checkpoints.openai_reference(archive))


@pytest.mark.parametrize("option", ["--no-quick-gelu", "--mean=0.5,0.5,0.5", "--std=0.5,0.5,0.5"])
def test_option_that_contradicts_openais_archive_is_refused(
    option: str, archive: Path, refuse: Any
) -> None:
    message = refuse(archive, option)
    by = "its TorchScript code" if option == "--no-quick-gelu" else "OpenAI's format"
    assert f"{by} says" in message
    assert option.partition("=")[0] in message


def test_torchscript_of_another_library_says_its_activation_only(
    network: Any, publish: Any, compare: Any, tmp_path: Path
) -> None:
    example = torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long)
    path = tmp_path / "traced.pt"
    torch.jit.trace(network, example, check_trace=False).save(str(path))
    lines = publish(path)
    assert "TorchScript archive; ViT-128x2-8 with GELU" in lines[0]
    assert "OpenAI" not in lines[0]
    assert any("nothing says the normalization" in line for line in lines)
    compare("open_clip, TorchScript", lines, checkpoints.open_clip_reference(network))


# --- transformers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("transformers directory", {}),
        ("transformers, safetensors shards", {"max_shard_size": "5MB"}),
    ],
)
def test_transformers_directory(
    form: str,
    options: dict[str, Any],
    hugging_face: Any,
    publish: Any,
    compare: Any,
    tmp_path: Path,
) -> None:
    """Activation and normalization come from its configs."""
    checkpoints.save_transformers(hugging_face, tmp_path / "clip", **options)
    lines = publish(tmp_path / "clip")
    assert lines[0].startswith("clip: transformers model; ViT-128x2-8 with QuickGELU, 96 floats")
    assert not any("nothing says" in line for line in lines)
    assert config(tmp_path / "out")["preprocess_cfg"]["mean"] == OTHER_MEAN
    assert manifest(tmp_path / "out")["source"] == "clip"
    compare(form, lines, checkpoints.transformers_reference(hugging_face))


def test_transformers_gelu_with_the_end_token_of_old_configs(
    publish: Any, compare: Any, tmp_path: Path
) -> None:
    """eos_token_id 2 means the highest id of the text, which is its end-of-text token."""
    model = checkpoints.transformers_model("gelu", eos_token_id=2)
    checkpoints.save_transformers(model, tmp_path / "clip")
    lines = publish(tmp_path / "clip")
    assert "with GELU" in lines[0]
    compare("transformers, gelu, eos_token_id 2", lines, checkpoints.transformers_reference(model))


def split_bin(state: Tensors, directory: Path) -> None:
    """Write pytorch_model.bin in two shards with their index, as transformers 4 did."""
    names = sorted(state)
    weight_map = {}
    for number, part in ((1, names[::2]), (2, names[1::2])):
        shard = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: state[name] for name in part}, directory / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("sharded", [False, True])
def test_transformers_pickles(
    sharded: bool, hugging_face: Any, publish: Any, compare: Any, tmp_path: Path
) -> None:
    directory = tmp_path / "clip"
    checkpoints.save_transformers(hugging_face, directory)
    (directory / "model.safetensors").unlink()
    # A buffer that older versions saved.
    state = hugging_face.state_dict()
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if sharded:
        split_bin(state, directory)
    else:
        torch.save(state, directory / "pytorch_model.bin")
    lines = publish(directory)
    form = f"transformers, pytorch_model.bin{' in shards' if sharded else ''}"
    compare(form, lines, checkpoints.transformers_reference(hugging_face))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_lone_file_of_transformers(
    name: str, hugging_face: Any, publish: Any, compare: Any, tmp_path: Path
) -> None:
    """Without its config nothing says the activation, and the choice is printed."""
    state = {key: tensor.contiguous() for key, tensor in hugging_face.state_dict().items()}
    if name.endswith(".bin"):
        torch.save(state, tmp_path / name)
    else:
        safetensors.torch.save_file(state, tmp_path / name)
    lines = publish(tmp_path / name, "--mean=0.5,0.4,0.3")
    assert "transformers checkpoint; ViT-128x2-8 with QuickGELU" in lines[0]
    assert any("nothing says the activation: QuickGELU was chosen" in line for line in lines)
    assert any("nothing says the normalization: std 0.26863" in line for line in lines)
    reference = checkpoints.transformers_reference(
        hugging_face, OTHER_MEAN, open_clip.OPENAI_DATASET_STD
    )
    compare(f"transformers, {name} alone", lines, reference)


def test_config_beside_a_file_is_used(publish: Any, compare: Any, tmp_path: Path) -> None:
    model = checkpoints.transformers_model("gelu")
    checkpoints.save_transformers(model, tmp_path / "clip")
    lines = publish(tmp_path / "clip" / "model.safetensors")
    assert "with the config beside it; ViT-128x2-8 with GELU" in lines[0]
    compare(
        "transformers, file beside its config", lines, checkpoints.transformers_reference(model)
    )


@pytest.mark.parametrize("as_file", [False, True])
def test_config_is_that_of_the_library_of_the_tensors(
    as_file: bool, hugging_face: Any, publish: Any, compare: Any, tmp_path: Path
) -> None:
    """If there are configs of both libraries, which agree."""
    directory = tmp_path / "clip"
    checkpoints.save_transformers(hugging_face, directory)
    stated = checkpoints.open_clip_config(True, interpolation="bicubic")
    checkpoints.write_config(directory, stated)
    lines = publish(directory / "model.safetensors" if as_file else directory)
    assert (
        "transformers checkpoint with the" in lines[0]
        if as_file
        else "transformers model" in lines[0]
    )
    assert not any("nothing says" in line for line in lines)
    reference = checkpoints.transformers_reference(hugging_face)
    compare(f"configs of both libraries, {'file' if as_file else 'directory'}", lines, reference)


# --- open_clip ----------------------------------------------------------------------------------


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clip_directory(quick_gelu: bool, publish: Any, compare: Any, tmp_path: Path) -> None:
    """Activation, normalization and interpolation come from open_clip_config.json."""
    directory = tmp_path / "model"
    checkpoints.write_config(directory, checkpoints.open_clip_config(quick_gelu))
    state = checkpoints.open_clip_model(quick_gelu).state_dict()
    safetensors.torch.save_file(dict(state), directory / "open_clip_model.safetensors")
    lines = publish(directory)
    assert not any("nothing says" in line for line in lines)
    activation = "QuickGELU" if quick_gelu else "GELU"
    assert lines[0] == f"model: open_clip model; ViT-128x2-8 with {activation}, 96 floats"
    stated = config(tmp_path / "out")["preprocess_cfg"]
    assert (stated["std"], stated["interpolation"]) == (OTHER_STD, "bilinear")
    form = f"open_clip directory, {activation}"
    compare(form, lines, checkpoints.directory_reference(directory))


def test_published_directory_can_be_published_again(
    state: Tensors, network: Any, publish: Any, compare: Any, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "model.pt")
    publish(tmp_path / "model.pt", "--no-quick-gelu")
    (tmp_path / "out").rename(tmp_path / "first")
    lines = publish(tmp_path / "first")
    assert not any("nothing says" in line for line in lines)
    compare("published directory", lines, checkpoints.open_clip_reference(network))


def prefixed(state: Tensors, *prefixes: str) -> Tensors:
    return {"".join(prefixes) + name: tensor for name, tensor in state.items()}


def averaged(state: Tensors) -> Tensors:
    return {name: tensor + 1 for name, tensor in state.items()}


TRAINING: dict[str, Callable[[Tensors], Any]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {}}},
    "module.": lambda s: {"state_dict": prefixed(s, "module.")},
    "_orig_mod.": lambda s: {"model_state_dict": prefixed(s, "_orig_mod.")},
    "module._orig_mod.": lambda s: prefixed(s, "module.", "_orig_mod."),
    "_orig_mod.module.": lambda s: {"state_dict": prefixed(s, "_orig_mod.", "module.")},
    "Lightning's model.": lambda s: {
        "pytorch-lightning_version": "2.5",
        "state_dict": {**prefixed(s, "model."), "loss.step": torch.tensor(4)},
    },
    "model._orig_mod.": lambda s: {"state_dict": prefixed(s, "model.", "_orig_mod.")},
    "model.module._orig_mod.": lambda s: prefixed(s, "model.", "module.", "_orig_mod."),
    "compiled towers": lambda s: {
        name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in s.items()
    },
    "nested": lambda s: {"state_dict": {"model": prefixed(s, "module.")}, "step": torch.ones(())},
    "logit_scale of shape [1]": lambda s: {**s, "logit_scale": s["logit_scale"].reshape(1)},
    "buffers": lambda s: {
        **s,
        "attn_mask": torch.full((77, 77), float("-inf")).triu(1),
        "visual.position_ids": torch.arange(17),
        "step": torch.tensor(7),
    },
    "state_dict_ema": lambda s: {"state_dict": s, "state_dict_ema": averaged(s)},
    "model_ema": lambda s: {"model": prefixed(s, "module."), "model_ema": averaged(s)},
    "ema_state_dict": lambda s: {"ema_state_dict": averaged(s), "state_dict": s},
    "ema beside it": lambda s: {**s, "ema": averaged(s)},
    "EMA by prefix": lambda s: {**prefixed(s, "model."), **prefixed(averaged(s), "model_ema.")},
    "EMA alone": lambda s: {"epoch": 1, "ema": {"module": s}},
    "float64": lambda s: {name: tensor.double() for name, tensor in s.items()},
}
"""What trainers save → the name of the form."""


@pytest.mark.parametrize("form", TRAINING)
def test_training_checkpoint(
    form: str, state: Tensors, network: Any, publish: Any, compare: Any, tmp_path: Path
) -> None:
    torch.save(TRAINING[form](state), tmp_path / "epoch_3.pt")
    lines = publish(tmp_path / "epoch_3.pt", "--no-quick-gelu")
    if "ema" in form.lower():
        taken = "its EMA weights, as it has no others" if "alone" in form else "not its EMA weights"
        assert taken in lines[0]
    compare(f"open_clip checkpoint, {form}", lines, checkpoints.open_clip_reference(network))


def test_normalization_can_be_set(
    state: Tensors, network: Any, publish: Any, compare: Any, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "epoch_3.pt")
    lines = publish(
        tmp_path / "epoch_3.pt", "--no-quick-gelu", "--mean=0.5,0.4,0.3", "--std=0.5,0.25,0.2"
    )
    assert not any("nothing says the" in line for line in lines)
    reference = checkpoints.open_clip_reference(network, OTHER_MEAN, OTHER_STD)
    compare("open_clip checkpoint, --mean and --std", lines, reference)


@pytest.fixture
def tag(state: Tensors, mini: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Make `openai` a pretrained tag of the architecture `mini`; return the --model of it."""
    network = checkpoints.open_clip_model(quick_gelu=True)
    torch.save(network.state_dict(), tmp_path / "tag.pt")
    entry = {
        **pretrained._PRETRAINED["ViT-L-14"]["openai"],
        "file": str(tmp_path / "tag.pt"),
        "mean": OTHER_MEAN,
    }
    monkeypatch.setitem(pretrained._PRETRAINED, "mini", {"openai": entry})
    return mini


def test_pretrained_tag_has_the_activation_that_open_clip_lists(
    tag: str, publish: Any, compare: Any, tmp_path: Path
) -> None:
    """`openai` is QuickGELU, also if --model does not say so."""
    lines = publish("openai", "--model", tag)
    assert lines[0] == "openai: pretrained tag of mini; mini with QuickGELU, 96 floats"
    assert config(tmp_path / "out")["model_cfg"]["quick_gelu"] is True
    network = checkpoints.open_clip_model(quick_gelu=True)
    reference = checkpoints.open_clip_reference(network, OTHER_MEAN)
    compare("pretrained tag of open_clip", lines, reference)


@pytest.mark.parametrize(
    ("tag", "model", "name", "quick_gelu", "mean"),
    [
        ("openai", None, "ViT-L-14", True, open_clip.OPENAI_DATASET_MEAN),
        ("openai", "ViT-B-32", "ViT-B-32", True, open_clip.OPENAI_DATASET_MEAN),
        ("openai", "ViT-L/14@336px", "ViT-L-14-336", True, open_clip.OPENAI_DATASET_MEAN),
        ("openai", "ViT-L-14-quickgelu", "ViT-L-14", True, open_clip.OPENAI_DATASET_MEAN),
        ("laion400m_e32", "ViT-B-32", "ViT-B-32", True, open_clip.OPENAI_DATASET_MEAN),
        ("laion400m_e32", "ViT-L-14", "ViT-L-14", False, open_clip.OPENAI_DATASET_MEAN),
        ("laion2b_s32b_b82k", None, "ViT-L-14", False, (0.5, 0.5, 0.5)),
        ("datacomp_xl_s13b_b90k", None, "ViT-L-14", False, open_clip.OPENAI_DATASET_MEAN),
        ("LAION2B-s34b-b79k", "ViT-B-32", "ViT-B-32", False, open_clip.OPENAI_DATASET_MEAN),
        ("dfn2b", None, "ViT-L-14", True, open_clip.OPENAI_DATASET_MEAN),
    ],
)
def test_tag_says_its_activation_and_normalization(
    tag: str, model: str | None, name: str, quick_gelu: bool, mean: tuple[float, ...]
) -> None:
    """They were trained differently, under one name of the architecture."""
    wanted = None if model is None else read_wanted(model)
    found = find_tag(tag, wanted)
    statement = found.statement(wanted)
    assert (found.model, statement.quick_gelu) == (name, quick_gelu)
    assert statement.preprocess_cfg["mean"] == list(mean)


@pytest.mark.parametrize(
    ("tag", "options", "says"),
    [
        (
            "opnai",
            [],
            "there is no file or directory 'opnai', and open_clip has no pretrained tag of ViT-L-1",
        ),
        ("opnai", [], "with this name; did you mean openai? (known: openai, "),
        (
            "openai",
            ["--model", "ViT-bigG-14"],
            "tag of ViT-bigG-14 with this name (known: laion2b_",
        ),
        ("laion2b_e16", ["--model", "ViT-H-14"], "(known: laion2b_s32b_b79k, metaclip_"),
        ("openai", ["--no-quick-gelu"], "openai: open_clip's tag openai of ViT-L-14 says QuickGEL"),
        ("laion2b_s32b_b82k", ["--quick-gelu"], "says GELU, but --quick-gelu says QuickGELU"),
        (
            "laion2b_s32b_b82k",
            ["--model", "ViT-L-14-quickgelu"],
            "says GELU, but --model ViT-L-14-quickgelu says QuickGELU",
        ),
        ("laion2b_s32b_b82k", ["--mean=0.1,0.1,0.1"], "says mean 0.5,0.5,0.5, but --mean says 0.1"),
    ],
)
def test_tag_is_refused_before_its_file_is_downloaded(
    tag: str, options: list[str], says: str, refuse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PretrainedTag, "download", None)
    assert says in refuse(tag, *options)


def test_failure_is_one_line_on_stderr_and_status_1(tmp_path: Path) -> None:
    """As users meet it."""
    command = [sys.executable, str(ROOT / "scripts" / "publish_weights.py")]
    done = subprocess.run(
        [*command, str(tmp_path / "ViT-L-14.pt"), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr == (
        f"there is no file or directory '{tmp_path}/ViT-L-14.pt'; check the path\n"
    )


def test_random_weights(publish: Any, mini: str) -> None:
    lines = publish("random:3", "--model", mini)
    assert lines[0] == "random:3: untrained network; mini with GELU, 96 floats"
    assert not any("nothing says" in line for line in lines)


# --- other tools --------------------------------------------------------------------------------


def test_open_clip_reads_what_was_published(
    hugging_face: Any, publish: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the lines between the blank ones. Its own loader reads models of one shard only."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 2**20)
    checkpoints.save_transformers(hugging_face, tmp_path / "clip")
    publish(tmp_path / "clip")
    directory = tmp_path / "out"

    model, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{directory}", load_weights=False
    )
    index = json.loads((directory / "model.safetensors.index.json").read_bytes())["weight_map"]
    tensors: Tensors = {}
    for shard in set(index.values()):
        tensors |= safetensors.torch.load_file(directory / shard)
    model.load_state_dict(tensors)

    assert len(set(index.values())) > 1
    ours = checkpoints.embed_with_open_clip(model, preprocess)
    reference = checkpoints.transformers_reference(hugging_face)
    difference, _ = reference.difference(ours.vectors)
    assert difference <= 1e-4


def test_open_clips_own_loader_reads_a_model_of_one_shard(
    hugging_face: Any, publish: Any, tmp_path: Path
) -> None:
    checkpoints.save_transformers(hugging_face, tmp_path / "clip")
    publish(tmp_path / "clip")
    ours = checkpoints.directory_reference(tmp_path / "out")
    reference = checkpoints.transformers_reference(hugging_face)
    difference, _ = reference.difference(ours.vectors)
    assert difference <= 1e-4
