"""Fetch one component's tensors: ``python -m pull COMPONENT [--dry-run]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components import component, require_own
from omni.command_line import run_app
from omni.component import Component
from omni.edit import set_value
from omni.params import ModelParams, load
from pull import speakers, synthetic
from pull.borrowed import speakers_of
from pull.client import hub_snapshot
from pull.folder import FolderSnapshot
from pull.forecast import table
from pull.plan import Plan, config_of, plan
from pull.snapshot import Snapshot
from pull.write import already_here, fetch
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import VOICES

PARAMS = Path("params.yaml")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def pull(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[COMPONENT]", help="which component's tensors; with --dry-run, of all if none"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be fetched, and stop")] = False,
) -> None:
    """Write models/source/COMPONENT from the source that params.yaml names."""
    params = load(PARAMS)
    model = params.model
    if name is None:
        if not dry_run:
            raise UserError("name a component, or say --dry-run for a table of all")
        snapshot = _snapshot(model)
        parts = map(component, params.components)
        needed = {part.name: _plan(_with_speakers(snapshot, part, model), part) for part in parts}
        print(_origin(snapshot))
        print(table(needed, params))
        return
    part = require_own(name)
    folder = Path("models/source") / name
    snapshot = _with_speakers(_snapshot(model), part, model)
    wanted = _plan(snapshot, part)
    if dry_run:
        _print(snapshot, wanted)
        return
    pinned = None if model.source == "synthetic" else model.speakers_sha256
    if already_here(snapshot, wanted, folder, pinned):
        print(f"{folder}: already here")
    else:
        fetch(snapshot, wanted, folder, pinned)
    if part.voices and model.source != "synthetic" and pinned is None:
        _pin(artifact.read_json(folder / "source.json")["speakers_sha256"])


def _snapshot(model: ModelParams) -> Snapshot:
    if model.folder is not None:
        return FolderSnapshot(model.folder)
    if model.source == "synthetic":
        return synthetic.SyntheticSnapshot(synthetic.CONFIGS[model.widths], model.seed, model.layers)
    return hub_snapshot(model.repository, model.revision)


def _with_speakers(snapshot: Snapshot, part: Component, model: ModelParams) -> Snapshot:
    if not part.voices or model.speakers is None or model.source == "synthetic":
        return snapshot
    return speakers_of(snapshot, model.speakers)


def _plan(snapshot: Snapshot, part: Component) -> Plan:
    return plan(snapshot, part, config_of(snapshot, part))


def _pin(found: str) -> None:
    """Let every later pull accept this file of speakers alone."""
    set_value(PARAMS, ("model", "speakers_sha256"), found, f"write model.speakers_sha256: {found} yourself")
    print(f"{PARAMS}: model.speakers_sha256 is now {found}, the SHA-256 of the {speakers.FILE} that was pulled")


def _print(snapshot: Snapshot, needed: Plan) -> None:
    print(_origin(snapshot))
    for name, spec in needed.tensors.items():
        print(f"  {name}  {spec}  {spec.nbytes:,} bytes")
    if needed.speakers:
        print(f"  {speakers.FILE}  {needed.speakers.nbytes:,} bytes, checked and turned into {VOICES}")
    print(f"would read {needed.nbytes:,} bytes in {len(needed.ranges)} requests from {len(needed.shards)} file(s)")
    print(f"disk needed: {needed.nbytes / 1e6:.1f} MB")


def _origin(snapshot: Snapshot) -> str:
    origin = snapshot.describe()
    at = f" at commit {origin['commit']}" if "commit" in origin else ""
    return f"{origin['checkpoint']}{at}"


if __name__ == "__main__":
    run_app(app)
