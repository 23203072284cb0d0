"""Fetch one component's tensors: ``python -m pull COMPONENT [--dry-run]``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from components import require_own
from omni.edit import set_value
from omni.params import Params, load
from pull import speakers
from pull.estimate import disk, memory
from pull.plan import Plan, config_of, plan
from pull.snapshot import Snapshot
from pull.source import plans_of, snapshot_of, with_speakers
from pull.write import already_here, fetch
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import VOICES

PARAMS = Path("params.yaml")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def pull(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[COMPONENT]", help="Component whose tensors are fetched; with --dry-run, all if none is given."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be fetched, and stop.")] = False,
) -> None:
    """Write models/source/COMPONENT from the source that params.yaml names."""
    params = load(PARAMS)
    model = params.model
    if name is None:
        if not dry_run:
            raise UserError("name a component, or say --dry-run for a table of all")
        snapshot = snapshot_of(model)
        print(_origin(snapshot))
        print(_table(plans_of(snapshot, params), params))
        return
    target = require_own(name)
    folder = Path("models/source") / name
    snapshot = with_speakers(snapshot_of(model), target, model)
    needed = plan(snapshot, target, config_of(snapshot, target))
    if dry_run:
        _print(snapshot, needed)
        return
    pinned = None if model.source == "synthetic" else model.speakers_sha256
    if already_here(snapshot, needed, folder, pinned):
        print(f"{folder}: already here")
    else:
        fetch(snapshot, needed, folder, pinned)
    if target.voices and model.source != "synthetic" and pinned is None:
        _pin(artifact.read_json(folder / "source.json")["speakers_sha256"])


def _pin(found: str) -> None:
    """Pin the SHA-256 of the file of speakers in ``params.yaml``: later pulls accept this file alone."""
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


def _table(plans: Mapping[str, Plan], params: Params) -> str:
    """Return a table of what would be fetched, with the disk and the memory that the whole build takes.

    Args:
        plans: Plans by the component's name.
        params: Parameters of the build.
    """
    rows = [("component", "tensors", "bytes", "files"), *(_row(name, plan) for name, plan in plans.items())]
    specs = {name: spec for plan in plans.values() for name, spec in plan.tensors.items()}
    files = {file for plan in plans.values() for file in plan.shards}
    rows.append(("all", f"{len(specs):,}", f"{sum(spec.nbytes for spec in specs.values()):,}", f"{len(files)} shards"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
    return "\n".join([*lines, f"disk: about {sum(disk(plans, params).values()) / 1e9:.0f} GB for the whole build",
                      f"memory: about {memory(plans) / 1e9:.0f} GB for its largest stage"])  # fmt: skip


def _row(name: str, plan: Plan) -> tuple[str, str, str, str]:
    beside = [*plan.companions, *([speakers.FILE] if plan.speakers else []), *(["tokenizer.json"] if plan.text else [])]
    shards = [f"{len(plan.shards)} shard{'s' * (len(plan.shards) > 1)}"] if plan.shards else []
    return name, f"{len(plan.tensors):,}", f"{plan.nbytes:,}", ", ".join([*shards, *beside])


def _origin(snapshot: Snapshot) -> str:
    origin = snapshot.describe()
    at = f" at commit {origin['commit']}" if "commit" in origin else ""
    return f"{origin['checkpoint']}{at}"


if __name__ == "__main__":
    run_app(app)
