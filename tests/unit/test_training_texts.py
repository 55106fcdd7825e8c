"""Sentences that the demo's model learns from, and what the teacher says of them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from clip_embed.inputs.tokenizer import Tokenizer
from scripts.publishing.tokenizer_json import tokenizer_json
from scripts.training import sentences
from scripts.training.pictures import NAMES, Emoji
from scripts.training.sentences import Keyword, Sentences, build, wordnet_phrases, words_of
from scripts.training.texts import (
    BY_KIND,
    Words,
    everyday_sentences,
    kind_of,
    plain_name,
    plural,
    with_article,
)

PIZZA = Emoji("1f355", "pizza", ("cheese", "hungry", "slice"))
DOG = Emoji("1f415", "dog", ("pet", "bark"))
SENSES = """\
bark%2:32:00:: 00000009 1 4
cheese%1:13:00:: 00000001 1 3
hungry%3:00:00:: 00000002 1 5
pet%1:05:00:: 00000003 1 6
pet%2:35:00:: 00000004 1 1
slice%1:13:00:: 00000005 1 0
slice%2:35:00:: 00000006 1 0
"""
NOUNS = """\
  1 the license
00000001 13 n 01 cheese 0 000 | a solid food; "he likes cheese with wine"
00000003 05 n 01 pet 0 000 | an animal kept for pleasure
00000005 13 n 01 slice 0 000 | a thin flat piece cut off of some object
00000007 18 n 01 villain 0 000 | (offensive) a wicked person; "he was the villain"
00000008 09 n 01 law 0 000 | a rule; "the law of 1998: a summary"
"""


class FakeTeacher:
    """Counts letters: texts with the same letters have the same vector."""

    def embed(self, texts: Sequence[str], device: str = "cpu") -> npt.NDArray[np.float32]:
        vectors = np.zeros((len(texts), 64), np.float32)
        for row, text in enumerate(texts):
            for letter in text.lower():
                vectors[row, ord(letter) % 64] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the packages that the corpus is built from."""
    names, wordnet = tmp_path / NAMES, tmp_path / sentences.WORDNET / "dict"
    (names / "meta").mkdir(parents=True)
    (names / "en").mkdir()
    wordnet.mkdir(parents=True)
    subgroups = {"subgroups": {"1": "food-prepared", "2": "animal-mammal"}}
    (names / "meta" / "groups.json").write_text(json.dumps(subgroups))
    entries = [{"hexcode": "1F355", "subgroup": 1}, {"hexcode": "1F415", "subgroup": 2}]
    (names / "en" / "data.json").write_text(json.dumps(entries))
    (wordnet / "index.sense").write_text(SENSES)
    (wordnet / "data.noun").write_text(NOUNS)
    for part in ("verb", "adj", "adv"):
        (wordnet / f"data.{part}").write_text("")
    return tmp_path


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_json(), 77)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("flag: Côte d’Ivoire", "Côte d'Ivoire"),
        ("keycap: 5", "number 5"),
        ("man: red hair", "man with red hair"),
        ("woman: bald", "woman who is bald"),
        ("family: man, woman, boy", "family of man, woman and boy"),
        ("family: man, boy", "family of man and boy"),
        ("man walking: facing right", "man walking facing right"),
        ("A button (blood type)", "A button blood type"),
    ],
)
def test_plain_name(label: str, name: str) -> None:
    assert plain_name(label) == name


@pytest.mark.parametrize(
    ("noun", "article", "many"),
    [
        ("pizza", "a pizza", "pizzas"),
        ("red apple", "a red apple", "red apples"),
        ("orange", "an orange", "oranges"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("unicorn", "a unicorn", "unicorns"),
        ("grapes", "grapes", "grapes"),
        ("cooked rice", "cooked rice", "cooked rice"),
        ("bus", "a bus", "buses"),
        ("strawberry", "a strawberry", "strawberries"),
        ("firewoman", "a firewoman", "firewomen"),
        ("old woman", "an old woman", "old women"),
        ("glass of milk", "a glass of milk", "glass of milk"),
        ("Tokyo tower", "Tokyo tower", "Tokyo tower"),
    ],
)
def test_articles_and_plurals(noun: str, article: str, many: str) -> None:
    assert (with_article(noun), plural(noun)) == (article, many)


def test_every_kind_has_templates() -> None:
    assert {kind_of(name) for name in ("face-smiling", "face-costume", "arrow", "sport")} == {
        "face",
        "person",
        "symbol",
        "game",
    }
    assert set(BY_KIND) >= set(map(kind_of, ("drink", "place-map", "hand-prop", "hands", "event")))


def test_sentences_are_distinct_and_about_the_noun() -> None:
    texts = everyday_sentences(Words(("pizza",)), "food", 30, random.Random(0))

    assert len(set(texts)) == len(texts) == 30
    assert all("pizza" in text for text in texts)
    assert not any("{" in text or "  " in text for text in texts)


def test_equal_sentences_are_returned_once() -> None:
    texts = everyday_sentences(Words(("one o'clock",)), "time", 60, random.Random(0))

    assert len(set(texts)) == len(texts) < 60


def test_flags_are_not_pictures_of_a_country() -> None:
    texts = everyday_sentences(Words(("Peru",)), "flag", 60, random.Random(0))

    assert "the flag of Peru" in texts
    assert not [text for text in texts if "emoji" in text or "picture" in text or "photo" in text]


def test_templates_whose_words_are_missing_are_not_used() -> None:
    words = Words(("grinning face",), adjectives=("happy",))

    texts = everyday_sentences(words, "face", 60, random.Random(0))

    assert any("happy" in text for text in texts)
    assert not any(text.endswith("want to ") or "cannot stop" in text for text in texts)


@pytest.mark.parametrize("noun", ["rice", "grapes"])
def test_mass_nouns_and_plurals_have_no_article(noun: str) -> None:
    texts = everyday_sentences(Words((noun,)), "food", 60, random.Random(0))

    assert not [text for text in texts if f"a {noun}" in text.split(",")[0].replace("of a ", "a ")]
    assert not [text for text in texts if "rices" in text or "two rice" in text]


def test_verbs_agree_with_their_subject() -> None:
    words = Words(("man swimming",), verbs=("swim",), participles=("swimming",))

    texts = [
        text
        for seed in range(40)
        for text in everyday_sentences(words, "activity", 60, random.Random(seed))
    ]

    assert "we like to swim" in texts
    assert "she likes to swim" in texts
    assert "they were swimming" in texts
    assert not {"we likes to swim", "they was swimming"} & set(texts)


def test_keywords_are_used_as_their_part_of_speech() -> None:
    speech = {
        "cheese": {"noun"},
        "hungry": {"adj"},
        "eating": {"adj"},
        "bite": {"verb"},
        "food": {"noun"},
    }
    keywords = [
        Keyword("cheese", 0.6, own=True),
        Keyword("food", 0.6, own=False),  # rather that of another emoji
        Keyword("hungry", 0.5, own=True),
        Keyword("bite", 0.4, own=True),
        Keyword("eating", 0.3, own=True),
    ]

    words = words_of(PIZZA, keywords, "food", speech)

    assert words == Words(("pizza", "cheese"), ("hungry",), ("bite",), ("eating",))


def test_wordnet_phrases_are_plain_and_inoffensive(folder: Path) -> None:
    assert set(wordnet_phrases(folder, random.Random(0))) == {
        "a solid food",
        "he likes cheese with wine",
        "an animal kept for pleasure",
        "cheese",
        "pet",
        "slice",  # not in WordNet's tagged texts: the word only
    }


def test_corpus(folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "Teacher", FakeTeacher)
    monkeypatch.setattr(sentences, "TARGETS", 2)
    monkeypatch.setattr(sentences, "DIMENSIONS", 8)

    corpus = build([PIZZA, DOG], tokenizer, folder, excluded=["PIZZA"])

    rows = [tuple(row[:length]) for row, length in zip(corpus.tokens, corpus.lengths, strict=True)]
    assert len(set(rows)) == len(rows) > 60
    start, end = tokenizer.tokenize("dog").ids[0], tokenizer.tokenize("dog").ids[2]
    assert all(row[0] == start and row[-1] == end for row in rows)
    assert tuple(tokenizer.tokenize("pizza").ids[:3]) not in rows  # excluded
    dog = rows.index(tuple(tokenizer.tokenize("dog").ids[:3]))
    assert corpus.classes[dog] == corpus.soft_classes[dog, 0] == 1
    assert corpus.classes[rows.index(tuple(tokenizer.tokenize("a solid food").ids[:5]))] == -1
    np.testing.assert_allclose(corpus.soft_weights.sum(1), 1, atol=4e-3)
    assert corpus.teacher.shape == (len(rows), 8)


def test_long_sentences_are_cut_and_keep_their_end(tokenizer: Tokenizer) -> None:
    tokens, lengths = sentences._tokenize(tokenizer, ["dog " * 40, "dog"])

    end = tokenizer.tokenize("dog").ids[2]
    assert lengths.tolist() == [sentences.CONTEXT_LENGTH, 3]
    assert tokens[0, -1] == tokens[1, 2] == end
    assert not tokens[1, 3:].any()


def test_class_is_dropped_if_the_teacher_disagrees() -> None:
    soft_classes = np.array([[3, 1], [3, 1]], np.int16)

    assert sentences._plausible(np.array([1, 2], np.int16), soft_classes).tolist() == [1, -1]


def test_reduced_vectors_keep_cosines() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(50, 4)) @ rng.normal(size=(4, 32))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    reduced = sentences.reduce(vectors, 4)

    np.testing.assert_allclose(reduced @ reduced.T, vectors @ vectors.T, atol=1e-5)


def test_soft_targets_are_a_softmax_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "TARGETS", 2)
    vectors = np.array([[0.1, 0.5, 0.44]], np.float32)

    classes, weights = sentences.soft_targets(vectors, np.eye(3, dtype=np.float32))

    assert classes.tolist() == [[1, 2]]
    np.testing.assert_allclose(weights, [[0.731, 0.269]], atol=1e-3)


def test_corpus_file(tmp_path: Path) -> None:
    corpus = Sentences(*(np.full((1, 2), number, np.int16) for number in range(6)))

    corpus.save(tmp_path / "sentences.npz")

    assert Sentences.load(tmp_path / "sentences.npz").teacher.tolist() == [[5, 5]]
