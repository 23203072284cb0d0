"""Fetch one component's tensors: ``python -m pull COMPONENT [--dry-run]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omni.component import component
from omni.errors import run_command
from omni.params import load
from pull import synthetic
from pull.folder import FolderSnapshot
from pull.plan import Plan, Snapshot, config_of, plan
from pull.write import already_here, fetch

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="which component's tensors")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be fetched, and stop")] = False,
) -> None:
    """Write models/source/COMPONENT from the source that params.yaml names."""
    model = load().model
    part = component(name)
    folder = Path("models/source") / name
    if model.source == "synthetic":
        if dry_run:
            print("model.source is synthetic: nothing would be fetched")
            return
        synthetic.write(part, model.seed, model.layers, folder)
        return
    snapshot: Snapshot
    if model.source == "hub":
        from pull.hub import HubSnapshot

        snapshot = HubSnapshot(model.repository, model.revision)
    else:
        snapshot = FolderSnapshot(Path(model.source))
    needed = plan(snapshot, part, config_of(snapshot, part))
    if dry_run:
        _print(snapshot, needed)
        return
    if already_here(snapshot, needed, folder):
        print(f"{folder}: already here")
        return
    fetch(snapshot, needed, folder)


def _print(snapshot: Snapshot, needed: Plan) -> None:
    origin = snapshot.describe()
    at = f" at commit {origin['commit']}" if "commit" in origin else ""
    print(f"{origin['checkpoint']}{at}")
    for name, spec in needed.tensors.items():
        print(f"  {name}  {spec}  {spec.nbytes:,} bytes")
    print(f"would read {needed.nbytes:,} bytes in {len(needed.ranges)} requests from {needed.shards} file(s)")
    print(f"disk needed: {needed.nbytes / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(app)
