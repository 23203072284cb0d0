"""Opens a checkpoint on the hub, once the environment that the hub's client reads is checked."""

from __future__ import annotations

from pull.snapshot import Snapshot
from qwen_omni_onnx.common.hub_environment import require_environment

__all__ = ["hub_snapshot"]


def hub_snapshot(repository: str, revision: str) -> Snapshot:
    """Return the snapshot of a repository on the hub.

    Args:
        repository: ``owner/name``.
        revision: Branch, tag or commit.

    Raises:
        UserError: A setting in the environment is wrong; or as :class:`pull.hub.HubSnapshot` does.
    """
    require_environment()
    from pull.hub import HubSnapshot

    return HubSnapshot(repository, revision)
