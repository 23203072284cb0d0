"""The published Thinker judged by text: tasks of EleutherAI's lm-eval, such as MMLU, and perplexity."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_omni_onnx.common.errors import UserError

if TYPE_CHECKING:
    from validate.text.harness import Tasks

__all__ = ["open_tasks"]


def open_tasks(names: Sequence[str], folder: Path | None) -> Tasks:
    """Return tasks of lm-eval.

    Args:
        names: Names of the tasks.
        folder: Folder with tasks of the user's own, beside lm-eval's; None without.

    Raises:
        UserError: lm-eval is not installed, or there is no such folder or task.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder}: no folder with tasks")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from validate.text.harness import Tasks
    except ImportError as error:
        raise UserError(f"{error}; install the extra ear: pip install -e '.[build,ear]'") from None
    return Tasks(names, folder)
