"""The schema that a plain `cog build` writes for predict.py.

Cog reads predict.py without running it. Here are its rules (pkg/schema in the source of Cog, August
2026), as far as predict.py needs them. What it does not use raises an error.
"""

from __future__ import annotations

import ast
from typing import Any

Schema = dict[str, Any]

TYPES: dict[str, Schema] = {
    "str": {"type": "string"},
    "float": {"type": "number"},
    "Path": {"type": "string", "format": "uri"},
    "Any": {"type": "object"},
}


def plain_build_schema(source: str, version: str) -> Schema:
    """Return the schema that Cog `version` writes for `Predictor.predict` in `source`."""
    [predict] = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AsyncFunctionDef) and node.name == "predict"
    ]
    arguments = predict.args.args[1:]  # without self
    assert predict.returns is not None
    properties = {
        argument.arg: _input(source, order, argument, default)
        for order, (argument, default) in enumerate(
            zip(arguments, predict.args.defaults, strict=True)
        )
    }
    return _document(
        version,
        Input={"title": "Input", "type": "object", "properties": properties},
        Output={"title": "Output", **_output(predict.returns)},
    )


def _input(source: str, order: int, argument: ast.arg, default: ast.expr) -> Schema:
    """Return the schema of `argument: TYPE | None = Input(default=None, …)`: it is optional."""
    match argument.annotation, default:
        case (
            ast.BinOp(ast.Name(name), ast.BitOr(), ast.Constant(None)),
            ast.Call(ast.Name("Input"), args=[], keywords=keywords),
        ):
            options = {str(keyword.arg): _value(source, keyword.value) for keyword in keywords}
        case _:
            raise ValueError(f"{argument.arg} is not declared as TYPE | None = Input(…)")
    assert options.keys() <= {"default", "description", "accept"}
    assert options["default"] is None
    return {
        "title": argument.arg.title(),
        **TYPES[name],
        "nullable": True,
        "default": None,
        "x-order": order,
        "description": options["description"],
        **({"x-cog-accept": options["accept"]} if "accept" in options else {}),
    }


def _value(source: str, node: ast.expr) -> str | None:
    """Return the value that Cog reads: of a string, what is between its first and last quote. So it
    does not join adjacent strings, and does not decode escapes."""
    assert isinstance(node, ast.Constant)
    if node.value is None:
        return None
    text = ast.get_source_segment(source, node)
    assert text is not None
    assert text[0] in "\"'"
    return text[1:-1]


def _output(annotation: ast.expr) -> Schema:
    match annotation:
        case ast.Name(name):
            return dict(TYPES[name])
        case ast.Subscript(ast.Name("list"), item):
            return {"type": "array", "items": _output(item)}
        case ast.Subscript(ast.Name("Annotated"), ast.Tuple([inner, ast.Name("Opaque")])):
            match inner:
                case ast.Subscript(ast.Name("list")):
                    return {"type": "array", "items": {"type": "object"}}
            return {"type": "object"}
    raise ValueError(f"no rule here for the annotation {ast.unparse(annotation)}")


# --- what is the same for every predictor ----------------------------------------------------


def _document(version: str, **schemas: Schema) -> Schema:
    validation = {"422": _response("Validation Error", _reference("HTTPValidationError"))}
    predictions = {
        "summary": "Predict",
        "description": "Run a single prediction on the model",
        "operationId": "predict_predictions_post",
        "requestBody": {"content": _json(_reference("PredictionRequest"))},
        "responses": {
            "200": _response("Successful Response", _reference("PredictionResponse")),
            **validation,
        },
    }
    cancel = {
        "summary": "Cancel",
        "operationId": "cancel_predictions__prediction_id__cancel_post",
        "parameters": [
            {
                "name": "prediction_id",
                "in": "path",
                "required": True,
                "schema": {"title": "Prediction Id", "type": "string"},
            }
        ],
        "responses": {"200": _response("Successful Response", {}), **validation},
    }
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": version},
        "paths": {
            "/": {"get": _get("Root", "root__get")},
            "/health-check": {"get": _get("Healthcheck", "healthcheck_health_check_get")},
            "/predictions": {"post": predictions},
            "/predictions/{prediction_id}/cancel": {"post": cancel},
        },
        "components": {"schemas": {**schemas, **_envelope(), **_errors()}},
    }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _response(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": _json(schema)}


def _get(summary: str, operation: str) -> Schema:
    return {
        "summary": summary,
        "operationId": operation,
        "responses": {"200": _response("Successful Response", {})},
    }


def _object(title: str, **properties: Schema) -> Schema:
    return {"title": title, "type": "object", "properties": properties}


def _field(title: str, type_: str = "string", **more: str) -> Schema:
    return {"title": title, "type": type_, **more}


def _envelope() -> dict[str, Schema]:
    return {
        "PredictionRequest": _object(
            "PredictionRequest", id=_field("Id"), input=_reference("Input")
        ),
        "PredictionResponse": _object(
            "PredictionResponse",
            input=_reference("Input"),
            output=_reference("Output"),
            id=_field("Id"),
            version=_field("Version"),
            created_at=_field("Created At", format="date-time"),
            started_at=_field("Started At", format="date-time"),
            completed_at=_field("Completed At", format="date-time"),
            status=_field("Status"),
            error=_field("Error"),
            logs=_field("Logs"),
            metrics=_field("Metrics", "object"),
        ),
        "Status": {
            "title": "Status",
            "description": "An enumeration.",
            "type": "string",
            "enum": ["starting", "processing", "succeeded", "canceled", "failed"],
        },
    }


def _errors() -> dict[str, Schema]:
    location = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
    return {
        "HTTPValidationError": _object(
            "HTTPValidationError",
            detail={"title": "Detail", "type": "array", "items": _reference("ValidationError")},
        ),
        "ValidationError": {
            **_object(
                "ValidationError",
                loc={"title": "Location", "type": "array", "items": location},
                msg=_field("Message"),
                type=_field("Error Type"),
            ),
            "required": ["loc", "msg", "type"],
        },
    }
