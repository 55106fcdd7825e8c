"""Make up sentences for an emoji from its name and keywords."""

from __future__ import annotations

import random

from scripts.training.pictures import Emoji

# Phrases around the thing that is meant. The network learns to ignore them.
TEMPLATES = [
    "a drawing of {}",
    "a picture of {}",
    "a photo of {}",
    "an image of the {}",
    "an emoji of {}",
    "a {}",
    "the {}",
    "one {} on a white background",
    "a small {} in the middle",
    "this is a {}",
    "here is the {}",
    "there is a {} in this picture",
    "someone drew {}",
    "I am looking for a {}",
    "please show me {}",
    "my {}",
    "a nice {}",
    "{}, drawn by hand",
    "a sign that says {}",
    "somebody with a {}",
    "we are at the {}",
    "it is a {} and nothing else",
]
CONNECTIVES = [", ", " ", " and ", " with ", " of ", " or ", " in a ", " on the ", " for "]


def random_sentence(emoji: Emoji, rng: random.Random) -> str:
    """Describe `emoji` by its name, its keywords or both, sometimes in a longer phrase."""
    choice = rng.random()
    if choice < 0.3 or not emoji.keywords:
        words = [emoji.label]
    elif choice < 0.55:
        words = [emoji.label, *_random_keywords(emoji, 1, 2, rng)]
    elif choice < 0.65:
        words = [*_random_keywords(emoji, 1, 2, rng), emoji.label]
    else:
        words = _random_keywords(emoji, 2, 4, rng)
    text = words[0]
    for word in words[1:]:
        text += (", " if rng.random() < 0.4 else rng.choice(CONNECTIVES)) + word
    if rng.random() < 0.4:
        text = rng.choice(TEMPLATES).format(text)
    return text


def _random_keywords(emoji: Emoji, least: int, most: int, rng: random.Random) -> list[str]:
    count = min(rng.randint(least, most), len(emoji.keywords))
    return rng.sample(emoji.keywords, count)
