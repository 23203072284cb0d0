"""Read the checkpoint's tokenizer, chat template and generation defaults, which turn text into tokens.

Checkpoints keep the template in one of three places; it is written to a file of its own.
"""

from __future__ import annotations

from typing import Any

from pull.snapshot import Snapshot, table_of
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.generation import eos_token_ids, max_new_tokens, sampling_settings
from qwen_omni_onnx.common.text import CHAT_TEMPLATE, GENERATION, TOKENIZER

__all__ = ["files"]

_MAX_BYTES = 100_000_000  # of a tokenizer; the 7B's has a ninth of that


def files(snapshot: Snapshot) -> dict[str, bytes]:
    """Return the content of the files to write, by name.

    Args:
        snapshot: The checkpoint.

    Raises:
        UserError: The checkpoint has no tokenizer or no chat template, one of them cannot be read, or its generation
            defaults ask for what the run-time does not do.
    """
    checkpoint = snapshot.describe()["checkpoint"]
    tokenizer = snapshot.small_file(TOKENIZER)
    if tokenizer is None:
        raise UserError(f"{checkpoint}: no {TOKENIZER} in it; save the tokenizer with transformers' save_pretrained")
    if len(tokenizer) > _MAX_BYTES or not isinstance(table_of(checkpoint, TOKENIZER, tokenizer).get("model"), dict):
        raise UserError(f"{checkpoint}: {TOKENIZER} is no tokenizer")
    found = {TOKENIZER: tokenizer, CHAT_TEMPLATE: _template(snapshot, checkpoint).encode()}
    generation = snapshot.small_file(GENERATION)
    if generation is not None:
        _require_generation(checkpoint, table_of(checkpoint, GENERATION, generation))
        found[GENERATION] = generation
    return found


def _template(snapshot: Snapshot, checkpoint: str) -> str:
    plain = snapshot.small_file(CHAT_TEMPLATE)
    if plain is not None:
        try:
            return plain.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{checkpoint}: {CHAT_TEMPLATE} is not text ({error})") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        content = snapshot.small_file(name)
        found = table_of(checkpoint, name, content).get("chat_template") if content is not None else None
        if found is not None:
            return _default(f"{checkpoint}: {name}: chat_template", found)
    raise UserError(f"{checkpoint}: no chat template, neither {CHAT_TEMPLATE} nor in chat_template.json")


def _default(where: str, found: Any) -> str:
    """Return the template of a setting that is a template, a list of entries with names, or a table by name."""
    if isinstance(found, str):
        return found
    entries = found
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        entries = {entry.get("name"): entry.get("template") for entry in found}
    if not isinstance(entries, dict) or not all(isinstance(text, str) for entry in entries.items() for text in entry):
        raise UserError(f"{where} is neither a template nor a list of templates with name and template")
    if "default" not in entries:
        raise UserError(f"{where} has no template named default; there are: {', '.join(sorted(entries)) or 'none'}")
    return entries["default"]


def _require_generation(checkpoint: str, table: dict) -> None:
    """Refuse generation defaults that the run-time would refuse, before gigabytes are fetched."""
    try:
        sampling_settings(table), max_new_tokens(table), eos_token_ids(table)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None
