"""Read a checkpoint by byte ranges from the Hugging Face Hub, or from any server with its protocol."""

from __future__ import annotations

from typing import Any

from qwen_omni_onnx.common.hub_errors import Advice
from qwen_omni_onnx.common.hub_repository import HubRepository

__all__ = ["HubSnapshot"]

_ADVICE = Advice(
    absent="the checkpoint is not whole",
    revision="check model.revision",
    elsewhere="set model.source to synthetic or to a folder",
    download="download the checkpoint and set model.source to its folder",
)


class HubSnapshot(HubRepository):
    """A checkpoint's repository at one commit; see :class:`pull.snapshot.Snapshot`.

    Args:
        repository: ``owner/name``.
        revision: Branch, tag or commit.
        retries: Attempts after a failure that may pass.
        wait: Seconds before the first retry; doubled for each further one.
    """

    def __init__(self, repository: str, revision: str, *, retries: int = 5, wait: float = 1.0) -> None:
        super().__init__(repository, revision, _ADVICE, retries=retries, wait=wait)

    def describe(self) -> dict[str, Any]:
        """Return repository and commit."""
        return {"checkpoint": self.repository, "kind": "hub", "commit": self.commit}
