"""A vector on its way out: a plain list, or the form that crosses Cog fastest.

Cog 0.23 sends a list to its server element by element, about 25 ms for 768 floats. A NumPy array
goes as one message; and Cog's search for files among its elements, worth 3 ms more, enters only
what is exactly a list, so the array's `tolist` returns a subclass. (coglet's `predictor.rs`,
`process_single_output`, and `output.rs`, `encode_files`; measured on 0.23.1.)
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA_PATH = ".cog/openapi_schema.json"
"""Where Cog's worker reads the schema, relative to its working directory."""


class _Floats(list[float]):
    """A list that Cog passes on whole."""


class OneMessage(np.ndarray[Any, np.dtype[np.float32]]):
    """A vector that Cog sends as one message."""

    def tolist(self) -> Any:
        return _Floats(super().tolist())


def as_list(vector: npt.NDArray[np.float32]) -> Any:
    """float32 [D] → a plain list of floats, right everywhere."""
    return vector.tolist()


def as_one_message(vector: npt.NDArray[np.float32]) -> Any:
    """float32 [D] → what Cog's worker sends as one message."""
    return vector.view(OneMessage)


def one_message_stays_flat() -> bool:
    """Whether, in Cog's worker, a single message reaches the client as a flat array.

    Where the schema calls the output an array at its top (a plain `cog build`), Cog wraps every
    message in a list of its own, and one message would come out as [[…]]; `openapi.json` says the
    same in another way, and without a schema nothing is wrapped.
    """
    try:
        with open(SCHEMA_PATH, encoding="utf-8") as file:
            output = json.load(file)["components"]["schemas"]["Output"]
    except FileNotFoundError:
        return True
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return isinstance(output, dict) and output.get("type") != "array"
