"""Test that openapi.json is the schema of a plain `cog build`, but for a better output."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import cog

import predict
from scripts.lib.cog_server import SCHEMA
from tests.helpers.cog_schema import plain_build_schema
from tests.helpers.paths import ROOT

PREPARED = json.loads(SCHEMA.read_text())
[COG_VERSION] = re.findall(r'sdk_version: "([\d.]+)"', (ROOT / "cog.yaml").read_text())
PLAIN = plain_build_schema((ROOT / "predict.py").read_text(), COG_VERSION)
OUTPUT = ("Output", "Embedding")
"""The schema of the output, and the one that it refers to."""


def without_output(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    others = {name: schema for name, schema in schemas.items() if name not in OUTPUT}
    return {**document, "components": {**document["components"], "schemas": others}}


def test_openapi_json_differs_from_a_plain_build_in_the_output_only() -> None:
    assert without_output(PREPARED) == without_output(PLAIN)
    assert list(PREPARED["components"]["schemas"]["Input"]["properties"]) == ["text", "image"]


def test_an_input_that_is_left_out_is_none() -> None:
    """Without `default`, Cog's playground sends an empty string for each input that its user left
    out, and that is refused: it is no URI."""
    for schema in PREPARED["components"]["schemas"]["Input"]["properties"].values():
        assert schema["default"] is None
        assert schema["nullable"] is True


def test_descriptions_are_what_python_reads() -> None:
    """Cog reads the source: of two adjacent strings it would show the quotes between them."""
    defaults = predict.Predictor.predict.__defaults__
    properties = PLAIN["components"]["schemas"]["Input"]["properties"].values()
    assert [schema["description"] for schema in properties] == [
        default.description for default in defaults
    ]


def test_output_refers_to_a_list_of_numbers() -> None:
    """`Output` refers to a list: were it an array itself, Cog would nest the list
    (clip_embed/cog_workarounds/output.py). Its length depends on the published model."""
    schemas = PREPARED["components"]["schemas"]
    assert schemas["Output"]["allOf"] == [{"$ref": "#/components/schemas/Embedding"}]
    embedding = schemas["Embedding"]
    assert (embedding["type"], embedding["items"]) == ("array", {"type": "number"})
    assert embedding.keys().isdisjoint({"minItems", "maxItems"})
    assert "ViT-L/14 gives 768 numbers" in embedding["description"]


def test_output_of_a_plain_build_is_no_array() -> None:
    """The annotation is true for Python, and says nothing of an array to Cog."""
    assert PLAIN["components"]["schemas"]["Output"] == {"title": "Output", "type": "object"}
    returned = get_type_hints(predict.Predictor.predict, include_extras=True)["return"]
    assert get_origin(returned) is Annotated
    sequence, marker = get_args(returned)
    assert get_args(sequence) == (float,)
    assert issubclass(list, get_origin(sequence))
    assert marker is cog.Opaque
