"""What turns text into the Thinker's tokens: the checkpoint's tokenizer, chat template and generation defaults.

Checkpoints keep the template in one of three places; it is written in one: a file of its own.
"""

from __future__ import annotations

from omni.errors import Problem
from omni.text import CHAT_TEMPLATE, GENERATION, TOKENIZER
from pull.snapshot import Snapshot, table_of

__all__ = ["files"]

_MOST_BYTES = 100_000_000  # of a tokenizer: the 7B's is a ninth of that


def files(snapshot: Snapshot) -> dict[str, bytes]:
    """Return the files to write, by name.

    Raises:
        Problem: the checkpoint has no tokenizer or no chat template, or one that is not what it says.
    """
    checkpoint = snapshot.describe()["checkpoint"]
    tokenizer = snapshot.small_file(TOKENIZER)
    if tokenizer is None:
        raise Problem(f"{checkpoint}: no {TOKENIZER} in it; save the tokenizer with transformers' save_pretrained")
    if len(tokenizer) > _MOST_BYTES or not isinstance(table_of(checkpoint, TOKENIZER, tokenizer).get("model"), dict):
        raise Problem(f"{checkpoint}: {TOKENIZER} is no tokenizer")
    found = {TOKENIZER: tokenizer, CHAT_TEMPLATE: _template(snapshot, checkpoint).encode()}
    generation = snapshot.small_file(GENERATION)
    if generation is not None:
        table_of(checkpoint, GENERATION, generation)
        found[GENERATION] = generation
    return found


def _template(snapshot: Snapshot, checkpoint: str) -> str:
    plain = snapshot.small_file(CHAT_TEMPLATE)
    if plain is not None:
        try:
            return plain.decode()
        except UnicodeDecodeError as error:
            raise Problem(f"{checkpoint}: {CHAT_TEMPLATE} is not text ({error})") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        content = snapshot.small_file(name)
        template = table_of(checkpoint, name, content).get("chat_template") if content is not None else None
        if isinstance(template, str):
            return template
    raise Problem(f"{checkpoint}: no chat template, neither {CHAT_TEMPLATE} nor in chat_template.json")
