"""Refuse checkpoints that cannot be built from; each error says what the checkpoint is and what to do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from components import component, names
from pull.layouts import INTEGERS
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "CONVERTIBLE",
    "missing_tensors",
    "require_floats",
    "require_integers",
    "require_model",
    "without_weights",
]

CONVERTIBLE = ("BF16", "F16", "F32")  # dtypes that convert to float32 exactly
_MODELS = ("qwen2_5_omni", "qwen2_5_omni_thinker")
_PARTS = ("qwen2_5_omni_talker", "qwen2_5_omni_token2wav", "qwen2_5_omni_dit", "qwen2_5_omni_bigvgan")
_ORDER = ("frontend", "encoder", "projection", "thinker", "talker", "token2wav")  # each fed by those before it
_LORA = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_PICKLES = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_INTO_SAFETENSORS = "load it with transformers and save it with save_pretrained, then set model.source to that folder"


def require_model(checkpoint: str, config: Mapping[str, Any]) -> None:
    """Refuse the configuration of another model, or of a module of this one that cannot be built from alone.

    Args:
        checkpoint: Name of the checkpoint.
        config: Content of its ``config.json``.

    Raises:
        UserError: It is one of these.
    """
    kind = config.get("model_type")
    if kind in _PARTS:
        raise UserError(
            f"{checkpoint}: config.json is of {kind}, a part of Qwen2.5-Omni saved alone; give the whole model, or the "
            "Thinker alone"
        )
    if isinstance(kind, str) and kind not in _MODELS and "thinker_config" not in config:
        raise UserError(f"{checkpoint}: config.json is of {kind!r:.80}; this builds Qwen2.5-Omni (qwen2_5_omni)")


def without_weights(checkpoint: str, exists: Callable[[str], bool]) -> UserError | None:
    """Return the error of a checkpoint without safetensors weights that is a LoRA adapter or has pickles; else None.

    Args:
        checkpoint: Name of the checkpoint.
        exists: Returns whether the checkpoint has a file of a name.
    """
    if any(map(exists, _LORA)):
        return UserError(
            f"{checkpoint}: a LoRA adapter, not a model: merge it into its base model (peft's merge_and_unload), save "
            "that with save_pretrained, and set model.source to the folder"
        )
    if any(map(exists, _PICKLES)):
        return UserError(
            f"{checkpoint}: its weights are in .bin files, pickles that can run code when they are opened; "
            f"{_INTO_SAFETENSORS}"
        )
    return None


def require_floats(shard: str, tensor: str, dtype: str) -> None:
    """Refuse a tensor whose values are not plain floats.

    Args:
        shard: File that holds it.
        tensor: Name of the tensor.
        dtype: Its dtype, as safetensors calls it.

    Raises:
        UserError: It has another dtype.
    """
    if dtype in CONVERTIBLE:
        return
    if dtype.startswith("F8"):
        raise UserError(
            f"{shard}: tensor {tensor} is {dtype}: an FP8 checkpoint, whose scales other engines know; take the "
            "checkpoint that it was made from, in BF16"
        )
    raise UserError(f"{shard}: tensor {tensor} is {dtype}; it must be one of {', '.join(CONVERTIBLE)}")


def require_integers(shard: str, tensor: str, dtype: str) -> None:
    """Refuse a packed tensor that does not hold INT32 words.

    Args:
        shard: File that holds it.
        tensor: Name of the tensor.
        dtype: Its dtype, as safetensors calls it.

    Raises:
        UserError: It has another dtype.
    """
    if dtype != INTEGERS:
        raise UserError(f"{shard}: tensor {tensor} is {dtype}; packed to 4 bits, it must be {INTEGERS}")


def missing_tensors(
    where: str, wanted: Collection[str], missing: list[str], buildable: Callable[[str], bool]
) -> UserError:
    """Return the error of a checkpoint that lacks tensors.

    Args:
        where: File in which they were looked for.
        wanted: Tensors that the component needs.
        missing: Those of them that are missing.
        buildable: Returns whether the checkpoint has all that the component of a name needs.
    """
    able = [name for name in _ORDER if buildable(name)] if len(missing) == len(wanted) else []
    if able not in ([], ["frontend"]):  # the front end has no weights: it can be built from anything
        composed = [
            name for name in names() if component(name).composed_of and {*component(name).composed_of} <= {*able}
        ]
        return UserError(
            f"{where}: none of the {len(wanted)} tensors is in it ({missing[0]}, ...): it holds a part of the model; "
            f"set components: [{', '.join(able)}] and composed: [{', '.join(composed)}] in params.yaml"
        )
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return UserError(f"{where}: tensor {missing[0]}{more} is missing; the checkpoint is not whole")
