"""Test that openapi.json describes the inputs and the output of `predict`."""

from __future__ import annotations

import inspect
import json

import predict
from scripts.lib.cog_server import SCHEMA

SCHEMAS = json.loads(SCHEMA.read_text())["components"]["schemas"]
INPUTS = SCHEMAS["Input"]["properties"]
SIGNATURE = inspect.signature(predict.Predictor.predict)
PARAMETERS = [parameter for name, parameter in SIGNATURE.parameters.items() if name != "self"]


def test_inputs_have_the_names_and_order_of_predict() -> None:
    """`x-order` is the order of the fields in the web form."""
    assert [parameter.name for parameter in PARAMETERS] == sorted(
        INPUTS, key=lambda name: INPUTS[name]["x-order"]
    )


def test_inputs_have_the_descriptions_and_defaults_of_predict() -> None:
    """Every input is optional: its default is None, and the schema requires none."""
    assert "required" not in SCHEMAS["Input"]
    for parameter in PARAMETERS:
        schema = INPUTS[parameter.name]
        assert schema["title"] == parameter.name.title()
        assert schema["description"] == parameter.default.description
        assert schema.get("default") is parameter.default.default is None
        assert schema["nullable"] is True


def test_inputs_have_the_types_of_predict() -> None:
    """A file is a string with the format uri."""
    for parameter in PARAMETERS:
        schema = INPUTS[parameter.name]
        is_file = parameter.annotation == predict.Path | None
        assert is_file or parameter.annotation == str | None
        assert schema["type"] == "string"
        assert schema.get("format") == ("uri" if is_file else None)


def test_output_has_the_type_of_predict() -> None:
    """`Output` refers to a list: were it an array itself, Cog would nest the list
    (clip_embed/cog_workarounds/output.py). Its length depends on the published model."""
    assert SIGNATURE.return_annotation == list[float]
    assert SCHEMAS["Output"]["allOf"] == [{"$ref": "#/components/schemas/Embedding"}]
    embedding = SCHEMAS["Embedding"]
    assert (embedding["type"], embedding["items"]) == ("array", {"type": "number"})
    assert embedding.keys().isdisjoint({"minItems", "maxItems"})
    assert "ViT-L/14 gives 768 numbers" in embedding["description"]
