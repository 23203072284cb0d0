"""The checkpoint that params.yaml names, and what the components need of it."""

from __future__ import annotations

from components import component
from omni.component import Component
from omni.params import ModelParams, Params
from pull import synthetic
from pull.client import hub_snapshot
from pull.folder import FolderSnapshot
from pull.plan import Plan, config_of, plan
from pull.snapshot import Snapshot
from pull.speakers import speakers_of

__all__ = ["plans_of", "snapshot_of", "with_speakers"]


def snapshot_of(model: ModelParams) -> Snapshot:
    """Return the checkpoint in its folder, on the hub, or of synthetic weights.

    Raises:
        UserError: There is none.
    """
    if model.folder is not None:
        return FolderSnapshot(model.folder)
    if model.source == "synthetic":
        return synthetic.SyntheticSnapshot(synthetic.CONFIGS[model.widths], model.seed, model.layers)
    return hub_snapshot(model.repository, model.revision)


def with_speakers(snapshot: Snapshot, target: Component, model: ModelParams) -> Snapshot:
    """Return the checkpoint with the voices of ``model.speakers``, if the component speaks and params.yaml has some."""
    if not target.voices or model.speakers is None or model.source == "synthetic":
        return snapshot
    return speakers_of(snapshot, model.speakers)


def plans_of(snapshot: Snapshot, params: Params) -> dict[str, Plan]:
    """Return what every component that is built needs of the checkpoint, by its name.

    Raises:
        UserError: The checkpoint lacks something.
    """
    plans = {}
    for target in map(component, params.components):
        own = with_speakers(snapshot, target, params.model)
        plans[target.name] = plan(own, target, config_of(own, target))
    return plans
