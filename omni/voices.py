"""The file of a checkpoint's speakers, as this project keeps it."""

__all__ = ["VOICES"]

VOICES = (
    "speakers.safetensors"  # <voice>/cond [1, 192], <voice>/ref_mel [1, frames, 80] and <voice>/bos_token [1] of each
)
