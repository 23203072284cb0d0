"""What is asked of every activation that is calibrated."""

from __future__ import annotations

import numpy as np

from qwen_omni_onnx.common.errors import UserError

__all__ = ["require_finite"]


def require_finite(clip: str, name: str, values: np.ndarray) -> None:
    """Check an activation's values.

    Raises:
        UserError: A value is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise UserError(f"calibration: clip {clip} makes {name} NaN or infinite; look at that clip")
