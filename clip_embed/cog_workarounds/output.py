"""Send a vector through Cog as one message.

Cog 0.23.1 sends a list to its server element by element: 25 ms for 768 floats, and an `output`
webhook for most of them. A NumPy array travels as one message. Cog then searches its elements for
files, 3 ms more, but only in an object whose type is exactly `list`: so the array's `tolist`
returns a subclass. (coglet: predictor.rs, `process_single_output`; output.rs, `encode_files`.)

That list becomes text with `json.dumps`, which writes 17 digits for the double that a float32
becomes. Nine identify it among all float32, and Cog then parses, copies and writes fewer, too: 0.9
ms less in all. So the worker's `json.dumps` is replaced by `dumps`, which differs for that list
only.

If the schema declares the output as an array at its top, Cog wraps each message in a list, and one
message would come out as [[…]] (coglet: orchestrator.rs, `output_is_array`). The schemas here do
not:

plain `cog build` derives it from the annotation of `predict`: list[float] becomes such an array,
                  and an Opaque sequence an object of unknown content. An Opaque list would be an
                  array, too, hence Sequence (Cog: schema_type.go, `opaqueSchemaType`)
openapi.json      declares an array of numbers by reference, which Cog does not take for an array
no schema         Cog wraps nothing
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

SCHEMA_PATH = ".cog/openapi_schema.json"
"""Where Cog's worker reads the schema, relative to its working directory."""

SLOW_SCHEMA = (
    f"WARNING: under the schema in {SCHEMA_PATH}, Cog sends a vector number by number: 25 ms more"
    ' for each prediction, and hundreds of "output" webhooks. To fix it, build the image with'
    " `cog build --openapi-schema openapi.json`, or push it with the same option of `cog push`."
)
"""What setup logs unless `one_message_stays_flat`."""


class Floats(list[float]):
    """A list that Cog does not search for files. vector: the same values, as float32."""

    vector: npt.NDArray[np.float32]


class OneMessage(np.ndarray[Any, np.dtype[np.float32]]):
    """A vector that Cog sends as one message."""

    def tolist(self) -> Any:
        floats = Floats(super().tolist())
        floats.vector = self.view(np.ndarray)
        return floats


def as_list(vector: npt.NDArray[np.float32]) -> Any:
    """Return float32 [D] as a plain list of floats, which is correct under every schema."""
    return vector.tolist()


def as_one_message(vector: npt.NDArray[np.float32]) -> Any:
    """Return float32 [D] as an object that Cog's worker sends as one message."""
    return vector.view(OneMessage)


_json_dumps = json.dumps


def dumps(obj: Any, **options: Any) -> str:
    """Return the JSON of `obj` as `json.dumps` does, with up to nine digits a number in Floats."""
    if type(obj) is not Floats:
        return _json_dumps(obj, **options)
    return orjson.dumps(obj.vector, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def one_message_stays_flat() -> bool:
    """Check that the schema lets a single message reach the client as a flat array."""
    try:
        with open(SCHEMA_PATH, encoding="utf-8") as file:
            output = json.load(file)["components"]["schemas"]["Output"]
    except FileNotFoundError:
        return True
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return isinstance(output, dict) and output.get("type") != "array"
