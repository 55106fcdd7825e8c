"""Make captions of 5 to 20 words, the same ones in every run."""

from __future__ import annotations

import random

_SUBJECTS = (
    "a red bicycle",
    "two children",
    "an old man with a grey beard",
    "a black and white dog",
    "a plate of pasta with tomatoes and basil",
    "a crowded street market",
    "a sailing boat",
    "a woman in a yellow raincoat",
    "a stack of old books",
    "a snow-covered mountain",
)
_DETAILS = (
    "leaning against a brick wall",
    "playing near the water",
    "looking straight into the camera",
    "under a bright blue sky",
    "seen from above",
    "on a wooden table",
    "in the last light of the day",
    "with a blurred background",
)
_PLACES = (
    "in Lisbon",
    "at the beach",
    "in front of a small café with green chairs",
    "next to a railway station",
    "in a quiet park in autumn",
    "",
)


def captions(count: int, seed: int = 0) -> list[str]:
    """Return `count` captions."""
    rng = random.Random(seed)
    return [
        " ".join(part for part in map(rng.choice, (_SUBJECTS, _DETAILS, _PLACES)) if part)
        for _ in range(count)
    ]
