"""Sentences for an emoji, made up from its name and keywords.

Knows nothing of pictures or tokens.
"""

from __future__ import annotations

import random

from training.pictures import Emoji

# What people write around the thing they mean. The network learns to pass over it.
AROUND = [
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
BETWEEN = [", ", " ", " and ", " with ", " of ", " or ", " in a ", " on the ", " for "]


def sentence(emoji: Emoji, random: random.Random) -> str:
    """One way to ask for `emoji`: its name as it is, dressed up, or some of its other words."""
    dice = random.random()
    if dice < 0.3 or not emoji.keywords:
        words = [emoji.label]
    elif dice < 0.55:
        words = [emoji.label, *_some(emoji, 1, 2, random)]
    elif dice < 0.65:
        words = [*_some(emoji, 1, 2, random), emoji.label]
    else:
        words = _some(emoji, 2, 4, random)
    text = words[0]
    for word in words[1:]:
        text += (", " if random.random() < 0.4 else random.choice(BETWEEN)) + word
    if random.random() < 0.4:
        text = random.choice(AROUND).format(text)
    return text


def _some(emoji: Emoji, low: int, high: int, random: random.Random) -> list[str]:
    count = min(random.randint(low, high), len(emoji.keywords))
    return random.sample(emoji.keywords, count)
