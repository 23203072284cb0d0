"""What a checkpoint is that cannot be built from, and what to do about it: one line each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from components import component, names
from qwen_omni_onnx.common.errors import UserError

__all__ = ["CONVERTIBLE", "missing_tensors", "require_floats", "require_model", "without_weights"]

CONVERTIBLE = ("BF16", "F16", "F32")  # what float32 graphs can be made from, exactly
_MODELS = ("qwen2_5_omni", "qwen2_5_omni_thinker")
_PARTS = ("qwen2_5_omni_talker", "qwen2_5_omni_token2wav", "qwen2_5_omni_dit", "qwen2_5_omni_bigvgan")
_ORDER = ("frontend", "encoder", "projection", "thinker", "talker", "token2wav")  # each fed by those before it
_LORA = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_PICKLES = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_INTO_SAFETENSORS = "load it with transformers and save it with save_pretrained, then set model.source to that folder"


def require_model(checkpoint: str, config: Mapping[str, Any]) -> None:
    """Refuse the configuration of another model, or of a part that cannot be built from alone.

    Raises:
        UserError: it is one.
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
    """Return what a checkpoint is that has no safetensors weights of a model; None if nothing is known of it.

    Args:
        checkpoint: Its name.
        exists: Tells whether it has a file of a name.
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

    Raises:
        UserError: it is of another dtype.
    """
    if dtype in CONVERTIBLE:
        return
    if dtype.startswith("F8"):
        raise UserError(
            f"{shard}: tensor {tensor} is {dtype}: an FP8 checkpoint, whose scales other engines know; take the "
            "checkpoint that it was made from, in BF16"
        )
    raise UserError(f"{shard}: tensor {tensor} is {dtype}; it must be one of {', '.join(CONVERTIBLE)}")


def missing_tensors(
    where: str, wanted: Collection[str], missing: list[str], buildable: Callable[[str], bool]
) -> UserError:
    """Return what is wrong with a checkpoint that lacks tensors.

    Args:
        where: They were looked for.
        wanted: By the component.
        missing: Of these.
        buildable: Tells of a component's name whether the checkpoint has all that it needs.
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
