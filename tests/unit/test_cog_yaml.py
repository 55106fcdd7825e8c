"""Test cog.yaml, without Docker."""

from __future__ import annotations

import importlib.metadata

import jsonschema
import yaml

import predict
from tests.helpers.paths import ROOT

# The keys of Cog's configuration that apply to a GPU image. Source: Cog, docs/yaml.md.
COG_YAML = {
    "type": "object",
    "additionalProperties": False,
    "required": ["build", "predict"],
    "properties": {
        "build": {
            "type": "object",
            "additionalProperties": False,
            "required": ["python_version"],
            "properties": {
                "gpu": {"type": "boolean"},
                "cuda": {"type": "string", "pattern": r"^\d+\.\d+(\.\d+)?$"},
                "python_version": {"enum": ["3.10", "3.11", "3.12", "3.13"]},
                "python_requirements": {"type": "string"},
                "sdk_version": {"type": "string"},
                "system_packages": {"type": "array", "items": {"type": "string"}},
                "run": {"type": "array", "items": {"type": "string"}},
            },
        },
        # Cog keeps some names for itself, such as those of NVIDIA's variables (pkg/config/env.go).
        "environment": {
            "type": "array",
            "items": {"type": "string", "pattern": r"^(?!NVIDIA_|NV_|CUDA_|PYTHON|LD_)\w+="},
        },
        "image": {"type": "string"},
        "predict": {"type": "string", "pattern": r"^[\w.]+\.py:\w+$"},
    },
}


def test_cog_yaml_is_valid() -> None:
    """Its keys are documented by Cog, its files exist, and its versions are those under test."""
    document = yaml.safe_load((ROOT / "cog.yaml").read_text())
    jsonschema.validate(document, COG_YAML)
    file, _, name = document["predict"].partition(":")
    assert (ROOT / file).is_file()
    assert hasattr(predict, name)
    assert (ROOT / document["build"]["python_requirements"]).is_file()
    assert document["build"]["sdk_version"] == importlib.metadata.version("cog")


def test_the_image_has_the_python_that_all_tests_run_with() -> None:
    """With the others only the unit tests run."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["all"]["steps"]
    [setup] = [step for step in steps if "actions/setup-python" in step.get("uses", "")]
    build = yaml.safe_load((ROOT / "cog.yaml").read_text())["build"]
    assert build["python_version"] == setup["with"]["python-version"]
