"""Fetch one component's tensors: ``python -m pull COMPONENT [--dry-run]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omni import artifact
from omni.component import require_own
from omni.edit import set_value
from omni.errors import run_command
from omni.params import load
from omni.voices import VOICES
from pull import speakers, synthetic
from pull.borrowed import speakers_of
from pull.folder import FolderSnapshot
from pull.plan import Plan, config_of, plan
from pull.snapshot import Snapshot
from pull.write import already_here, fetch

PARAMS = Path("params.yaml")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="which component's tensors")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be fetched, and stop")] = False,
) -> None:
    """Write models/source/COMPONENT from the source that params.yaml names."""
    model = load(PARAMS).model
    part = require_own(name)
    folder = Path("models/source") / name
    snapshot: Snapshot
    if model.source == "synthetic":
        snapshot = synthetic.SyntheticSnapshot(synthetic.CONFIGS[model.widths], model.seed, model.layers)
    elif model.source == "hub":
        from pull.hub import HubSnapshot

        snapshot = HubSnapshot(model.repository, model.revision)
    else:
        snapshot = FolderSnapshot(Path(model.source))
    if part.voices and model.speakers is not None and model.source != "synthetic":
        snapshot = speakers_of(snapshot, model.speakers)
    needed = plan(snapshot, part, config_of(snapshot, part))
    if dry_run:
        _print(snapshot, needed)
        return
    pinned = None if model.source == "synthetic" else model.speakers_sha256
    if already_here(snapshot, needed, folder, pinned):
        print(f"{folder}: already here")
    else:
        fetch(snapshot, needed, folder, pinned)
    if part.voices and model.source != "synthetic" and pinned is None:
        _pin(artifact.read_json(folder / "source.json")["speakers_sha256"])


def _pin(found: str) -> None:
    """Let every later pull accept this file of speakers alone."""
    set_value(PARAMS, ("model", "speakers_sha256"), found, f"write model.speakers_sha256: {found} yourself")
    print(f"{PARAMS}: model.speakers_sha256 is now {found}, the SHA-256 of the {speakers.FILE} that was pulled")


def _print(snapshot: Snapshot, needed: Plan) -> None:
    origin = snapshot.describe()
    at = f" at commit {origin['commit']}" if "commit" in origin else ""
    print(f"{origin['checkpoint']}{at}")
    for name, spec in needed.tensors.items():
        print(f"  {name}  {spec}  {spec.nbytes:,} bytes")
    if needed.speakers:
        print(f"  {speakers.FILE}  {needed.speakers.nbytes:,} bytes, checked and turned into {VOICES}")
    print(f"would read {needed.nbytes:,} bytes in {len(needed.ranges)} requests from {len(needed.shards)} file(s)")
    print(f"disk needed: {needed.nbytes / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(app)
