"""Fetch one component's tensors: ``python -m pull COMPONENT [--dry-run]``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from components import component, require_own
from omni.component import Component
from omni.edit import set_value
from omni.params import ModelParams, Params, load
from pull import speakers, synthetic
from pull.client import hub_snapshot
from pull.folder import FolderSnapshot
from pull.plan import Plan, config_of, plan
from pull.snapshot import Snapshot
from pull.speakers import speakers_of
from pull.write import already_here, fetch
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import VOICES

PARAMS = Path("params.yaml")
_FLOAT_BYTES = 4
_BYTES_A_WEIGHT = {"int8": 1.06, "int4": 0.56}  # with the scales of blocks of 32
_LIBRARIES_GB = 2  # memory of the libraries, with PyTorch among them
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
        snapshot = _snapshot(model)
        targets = map(component, params.components)
        plans = {target.name: _plan(_with_speakers(snapshot, target, model), target) for target in targets}
        print(_origin(snapshot))
        print(_table(plans, params))
        return
    target = require_own(name)
    folder = Path("models/source") / name
    snapshot = _with_speakers(_snapshot(model), target, model)
    needed = _plan(snapshot, target)
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


def _snapshot(model: ModelParams) -> Snapshot:
    if model.folder is not None:
        return FolderSnapshot(model.folder)
    if model.source == "synthetic":
        return synthetic.SyntheticSnapshot(synthetic.CONFIGS[model.widths], model.seed, model.layers)
    return hub_snapshot(model.repository, model.revision)


def _with_speakers(snapshot: Snapshot, target: Component, model: ModelParams) -> Snapshot:
    if not target.voices or model.speakers is None or model.source == "synthetic":
        return snapshot
    return speakers_of(snapshot, model.speakers)


def _plan(snapshot: Snapshot, target: Component) -> Plan:
    return plan(snapshot, target, config_of(snapshot, target))


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

    Disk is that of everything a build writes: sources, float32 and quantized graphs, and published copies of these.
    Memory is the most that one stage takes: PyTorch and ONNX Runtime each hold a float32 graph, and then its weights in
    the layout of its kernels.

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
    return "\n".join([*lines, f"disk: about {_disk(plans, params):.0f} GB for the whole build",
                      f"memory: about {_memory(plans):.0f} GB for its largest stage"])  # fmt: skip


def _row(name: str, plan: Plan) -> tuple[str, str, str, str]:
    beside = [*plan.companions, *([speakers.FILE] if plan.speakers else []), *(["tokenizer.json"] if plan.text else [])]
    shards = [f"{len(plan.shards)} shard{'s' * (len(plan.shards) > 1)}"] if plan.shards else []
    return name, f"{len(plan.tensors):,}", f"{plan.nbytes:,}", ", ".join([*shards, *beside])


def _values(plan: Plan) -> int:
    return sum(math.prod(spec.shape) for spec in plan.tensors.values())


def _disk(plans: Mapping[str, Plan], params: Params) -> float:
    """Return the disk that a build takes, in gigabytes."""
    quantized = {name: _values(plan) * _quantized(name, params) for name, plan in plans.items()}
    float32 = {name: _values(plan) * _FLOAT_BYTES for name, plan in plans.items()}
    graphs = sum(quantized.values()) + sum(
        plan.nbytes if _stored_as_is(name, params) else float32[name] for name, plan in plans.items()
    )
    parts = [part for whole in params.composed for part in component(whole).composed_of if part in plans]
    composed = sum(float32[part] + quantized[part] for part in parts)
    sources = sum(plan.nbytes for plan in plans.values())
    codes = sum(_values(plan) * _compensated(name, params) for name, plan in plans.items())
    return (sources + codes + 2 * (graphs + composed)) / 1e9


def _stored_as_is(name: str, params: Params) -> bool:
    """Return whether a component's float32 graphs store weights as the checkpoint does; composed ones never do."""
    settings = params.component(name).export
    return settings is not None and settings.store == "checkpoint"


def _compensated(name: str, params: Params) -> float:
    """Return the bytes of a weight in a component's compensated codes."""
    compensated = any(quantize.compensation for quantize in params.component(name).quantize.values())
    return _quantized(name, params) if compensated else 0.0


def _quantized(name: str, params: Params) -> float:
    """Return the bytes of a weight in a component's quantized graphs."""
    schemes = [quantize.scheme for quantize in params.component(name).quantize.values()]
    return max((_BYTES_A_WEIGHT.get(scheme.partition("-")[0], _FLOAT_BYTES) for scheme in schemes), default=0)


def _memory(plans: Mapping[str, Plan]) -> float:
    """Return the memory that the largest stage takes, in gigabytes."""
    return _LIBRARIES_GB + 2 * max(_values(plan) for plan in plans.values()) * _FLOAT_BYTES / 1e9


def _origin(snapshot: Snapshot) -> str:
    origin = snapshot.describe()
    at = f" at commit {origin['commit']}" if "commit" in origin else ""
    return f"{origin['checkpoint']}{at}"


if __name__ == "__main__":
    run_app(app)
