"""The training of the demo's model: batches, augmentation, optimizer, checkpoints."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_embed.model.clip import Clip, Packing
from clip_embed.model.config import ClipConfig
from scripts.training import train as training
from scripts.training.augment import augment
from scripts.training.batches import Batches, DeviceTexts, Members
from scripts.training.data import Pictures, Texts, TrainingData
from scripts.training.initialize import initial_parameters, position_encodings
from scripts.training.prepare import quantize
from scripts.training.run import Budget, TrainingRun, learning_rate_factor
from scripts.training.trainee import Trainee, match_loss

CPU = torch.device("cpu")
MODEL_CFG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 50, "width": 8, "heads": 2, "layers": 2},
}
CONFIG = ClipConfig.from_open_clip(MODEL_CFG)
CLASSES, SENTENCES, LENGTH = 3, 8, 6


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads would wait for each other on a busy machine, for many small operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data() -> TrainingData:
    """Five drawings of three classes; their names, and eight sentences, the last of no class."""
    rng = np.random.default_rng(0)
    count = CLASSES + SENTENCES
    classes = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, -1], np.int16)
    lengths = rng.integers(2, LENGTH + 1, count).astype(np.uint8)
    tokens = rng.integers(1, 50, (count, LENGTH)).astype(np.int32)
    tokens[np.arange(LENGTH) >= lengths[:, None]] = 0
    soft_classes = np.tile(np.array([2, 1], np.int16), (count, 1))
    soft_weights = np.tile(np.array([192, 64], np.uint8), (count, 1))
    teacher = rng.integers(-127, 128, (count, 4)).astype(np.int8)
    teacher[:CLASSES] = 0
    drawings = Pictures(draw(5), np.array([0, 0, 1, 2, 2]))
    held_out = Pictures(draw(CLASSES), np.arange(CLASSES))
    texts = Texts(tokens, lengths, classes, soft_classes, soft_weights, teacher)
    return TrainingData(drawings, held_out, texts)


def draw(count: int) -> np.ndarray:
    """Return discs of several colors: uint8 [count, 16, 16, 4], RGBA."""
    y, x = np.mgrid[-7.5:8, -7.5:8]
    colors = np.random.default_rng(1).integers(0, 256, (count, 1, 1, 3))
    pixels = np.zeros((count, 16, 16, 4), np.uint8)
    pixels[..., :3] = colors
    pixels[..., 3] = np.where(x**2 + y**2 < 40, 255, 0)
    return pixels


def make_run(data: TrainingData, budget: Budget) -> TrainingRun:
    torch.manual_seed(0)
    batches = Batches(data, CPU, seed=0, pictures=8, sentences=4)
    trainee = Trainee(CONFIG, batches.class_count, batches.teacher_width)
    return TrainingRun(trainee, batches, budget)


# --- augmentation ---------------------------------------------------------------------------


def augmented(seed: int) -> Tensor:
    pixels = torch.from_numpy(draw(40))
    return augment(pixels, pixels[:5].flip(0), torch.Generator().manual_seed(seed))


def test_augmented_pictures_are_colors_in_range() -> None:
    result = augmented(0)
    assert result.shape == (40, 3, 16, 16)
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1
    assert result.isfinite().all()


def test_augmentation_depends_on_the_seed_only() -> None:
    assert torch.equal(augmented(1), augmented(1))
    changed = (augmented(1) - augmented(2)).abs().amax((1, 2, 3))
    assert (changed > 0.01).float().mean() > 0.9


def test_augmentation_leaves_its_input_alone() -> None:
    pixels = torch.from_numpy(draw(40))
    augment(pixels, pixels[:5], torch.Generator().manual_seed(0))
    assert torch.equal(pixels, torch.from_numpy(draw(40)))


# --- batches --------------------------------------------------------------------------------


def test_members_of_a_class_are_drawn_equally_often() -> None:
    """Rows of no class are never drawn."""
    members = Members(torch.tensor([1, -1, 0, 1, -1, 1]), class_count=3)
    assert members.present.tolist() == [0, 1]
    generator = torch.Generator().manual_seed(0)
    rows = members.draw(torch.tensor([0] * 300 + [1] * 300), generator)
    assert rows[:300].unique().tolist() == [2]
    counts = rows[300:].bincount(minlength=6)
    assert counts[[1, 2, 4]].sum() == 0
    assert counts[[0, 3, 5]].min() > 60


def test_targets_are_half_the_own_class_and_half_the_teachers(data: TrainingData) -> None:
    """A sentence of no class has the teacher's targets alone."""
    targets = DeviceTexts(data.texts, CLASSES, CPU).targets(torch.tensor([3, 10]))
    torch.testing.assert_close(targets, torch.tensor([[0.5, 0.125, 0.375], [0, 0.25, 0.75]]))


def test_captions_belong_to_the_pictures(data: TrainingData) -> None:
    batch = Batches(data, CPU, seed=0, pictures=64, sentences=4).next_batch()
    assert batch.pixels.shape == (64, 3, 16, 16)
    assert batch.targets.shape == (68, CLASSES)
    own = batch.targets[:64].gather(1, batch.classes[:, None])
    assert (own >= 0.5).all()
    assert batch.classes.unique().tolist() == [0, 1, 2]


def test_padded_texts_have_the_features_of_packed_ones(data: TrainingData) -> None:
    torch.manual_seed(0)
    clip = Clip(CONFIG)
    clip.load({name: torch.randn(p.shape) * 0.3 for name, p in clip.named_parameters()})
    padded = clip.encode_text(*DeviceTexts(data.texts, CLASSES, CPU).tokens(torch.arange(11)))
    lengths = data.texts.lengths.tolist()
    tokens = [row[:length] for row, length in zip(data.texts.tokens, lengths, strict=True)]
    packed = clip.encode_text(
        torch.from_numpy(np.concatenate(tokens)).long(), Packing(lengths, CPU)
    )
    torch.testing.assert_close(padded, packed, atol=1e-5, rtol=1e-5)


# --- data -----------------------------------------------------------------------------------


def test_saved_data_can_be_loaded(data: TrainingData, tmp_path: Path) -> None:
    """Pictures lose a little: their file is WebP."""
    data.save(tmp_path / "data.npz")
    loaded = TrainingData.load(tmp_path / "data.npz")
    for name in Texts.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(loaded.texts, name), getattr(data.texts, name))
    np.testing.assert_array_equal(loaded.pictures.classes, data.pictures.classes)
    np.testing.assert_array_equal(loaded.pictures.pixels[..., 3], data.pictures.pixels[..., 3])
    opaque = data.pictures.pixels[..., 3] == 255
    difference = loaded.pictures.pixels[opaque].astype(int) - data.pictures.pixels[opaque]
    assert np.abs(difference).mean() < 5
    assert loaded.held_out.pixels.shape == data.held_out.pixels.shape


def test_quantized_vectors_keep_their_directions() -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float16)
    quantized = quantize(vectors).astype(np.float32)
    assert (np.abs(quantized).max(1) == 127).all()
    cosine = (quantized * vectors).sum(1) / np.linalg.norm(quantized, axis=1)
    np.testing.assert_allclose(
        cosine, np.linalg.norm(vectors.astype(np.float32), axis=1), rtol=1e-3
    )


# --- network and optimizer ------------------------------------------------------------------


def test_positions_are_encoded_differently() -> None:
    encodings = position_encodings(8, 64)
    assert torch.cdist(encodings, encodings).add(torch.eye(64) * 100).min() > 1


def test_initial_network_is_finite_and_tells_texts_apart(data: TrainingData) -> None:
    torch.manual_seed(0)
    clip = Clip(CONFIG)
    clip.load(initial_parameters(clip))
    texts = clip.encode_text(*DeviceTexts(data.texts, CLASSES, CPU).tokens(torch.arange(11)))
    assert texts.isfinite().all()
    assert texts.std(0).max() > 0.01


def test_captions_of_the_same_class_all_match() -> None:
    """A picture must not prefer one of two captions of its class."""
    classes = torch.tensor([5, 5, 7])
    equal = 10 * torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert match_loss(equal, classes).item() == pytest.approx(4 / 3 * np.log(2), abs=1e-3)
    assert match_loss(10 * torch.eye(3), classes).item() > 4


def test_losses_of_a_batch_reach_every_parameter(data: TrainingData) -> None:
    torch.manual_seed(0)
    trainee = Trainee(CONFIG, CLASSES, teacher_width=4)
    # At the start, the blocks pass no gradient to their inner matrices.
    for parameter in trainee.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    batch = Batches(data, CPU, seed=0, pictures=8, sentences=4).next_batch()
    trainee.losses(batch).total().backward()
    without = [
        name
        for name, parameter in trainee.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


# --- runs -----------------------------------------------------------------------------------


def test_training_lowers_the_loss(data: TrainingData) -> None:
    run = make_run(data, Budget(steps=25))
    losses = [run.step().total().item() for _ in range(25)]
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_interrupted_run_ends_with_the_same_parameters(data: TrainingData, tmp_path: Path) -> None:
    through = make_run(data, Budget(steps=6))
    for _ in range(6):
        through.step()
    interrupted = make_run(data, Budget(steps=6))
    for _ in range(3):
        interrupted.step()
    interrupted.save(tmp_path / "checkpoint")
    continued = make_run(data, Budget(steps=6))
    continued.load(tmp_path / "checkpoint")
    assert continued.steps_done == 3
    for _ in range(3):
        continued.step()
    for name, tensor in through.average.items():
        assert torch.equal(continued.average[name], tensor), name


def test_checkpoint_of_another_budget_is_refused(data: TrainingData, tmp_path: Path) -> None:
    """Its learning rate may have decreased to zero already."""
    make_run(data, Budget(steps=6)).save(tmp_path / "checkpoint")
    with pytest.raises(SystemExit, match=r"Budget\(steps=6.*not Budget\(steps=50.*delete it"):
        make_run(data, Budget(steps=50)).load(tmp_path / "checkpoint")


def test_time_of_earlier_runs_counts(data: TrainingData, tmp_path: Path) -> None:
    run = make_run(data, Budget(seconds=100))
    run._begin -= 60
    run.save(tmp_path / "checkpoint")
    continued = make_run(data, Budget(seconds=100))
    continued.load(tmp_path / "checkpoint")
    assert 0.6 <= continued.used < 0.7


def test_learning_rate_rises_stays_and_decreases_to_zero() -> None:
    factors = [learning_rate_factor(used / 100) for used in range(101)]
    assert 0 < factors[0] < 0.1
    assert set(factors[2:60]) == {1.0}
    assert all(a > b for a, b in itertools.pairwise(factors[60:]))
    assert factors[100] == 0


@pytest.mark.parametrize("budget", [Budget(steps=4), Budget(seconds=0.2)], ids=["steps", "time"])
def test_train_writes_the_published_parameters(
    budget: Budget,
    data: TrainingData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In float16, and nothing that is a training aid; the last step is reported."""
    architecture = tmp_path / "architecture.json"
    architecture.write_text(json.dumps(MODEL_CFG))
    monkeypatch.setattr(training, "ARCHITECTURE", architecture)
    monkeypatch.setattr(training, "BATCH", {"cpu": (8, 4)})
    data.save(tmp_path / "data.npz")
    training.train(tmp_path / "data.npz", tmp_path / "weights.pt", budget, 0, CPU)
    tensors = torch.load(tmp_path / "weights.pt")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert Clip(CONFIG).misfits(tensors) == []
    assert not list(tmp_path.glob("*.checkpoint-*"))  # the next run starts anew
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"step 4, " if budget.steps else r"step \d+, ", last)
    assert "name → picture" in last
