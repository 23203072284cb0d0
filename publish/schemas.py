"""JSON Schemas of ``params.yaml`` and of ``manifest.json``, for editors and for readers: ``python -m publish.schemas``.

They are generated from the types that read and write these files; a test compares the committed schemas with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from omni.component import COMPOSED_OF, NAMES
from omni.limits import SpeechLimits
from omni.schema import ComponentParams, ComposedParams, ModelParams, SessionParams
from publish.manifest import Manifest
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.command_line import run_app

__all__ = ["SCHEMAS", "text"]

FOLDER = Path("schemas")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def params_schema() -> dict[str, Any]:
    """Return the schema of ``params.yaml``: a block for each component, and the shared parameters."""
    models = (ModelParams, SessionParams, SpeechLimits, ComponentParams, ComposedParams)
    refs, definitions = models_json_schema([(model, "validation") for model in models])
    own = [name for name in NAMES if name not in COMPOSED_OF]
    blocks = {name: ComposedParams if name in COMPOSED_OF else ComponentParams for name in NAMES}
    tables = {"model": ModelParams, "sessions": SessionParams, "speech": SpeechLimits, **blocks}
    names = {"components": own, "composed": list(COMPOSED_OF)}
    return {
        "$schema": _DIALECT,
        "title": "params.yaml",
        "description": "Every knob of the pipeline.",
        "type": "object",
        "properties": {
            **{key: {"type": "array", "items": {"enum": known}, "uniqueItems": True} for key, known in names.items()},
            **{key: refs[model, "validation"] for key, model in tables.items()},
        },
        "required": ["components", "composed", "model", "sessions", "speech"],
        "additionalProperties": False,
        **definitions,
    }


def manifest_schema() -> dict[str, Any]:
    """Return the schema of a published folder's ``manifest.json``; readers ignore unknown keys."""
    return {"$schema": _DIALECT, **TypeAdapter(Manifest).json_schema()}


SCHEMAS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "params.schema.json": params_schema,
    "manifest.schema.json": manifest_schema,
}


def text(name: str) -> str:
    """Return the content of a file in ``schemas/``."""
    return json.dumps(SCHEMAS[name](), indent=2) + "\n"


@app.command()
def main() -> None:
    """Write the JSON Schemas of params.yaml and manifest.json into schemas/."""
    FOLDER.mkdir(exist_ok=True)
    for name in SCHEMAS:
        with output.writing(FOLDER / name) as beside:
            beside.write_text(text(name), encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    run_app(app)
