"""One snapshot of a checkpoint that holds both siblings, and what the decoder is fed: texts, as embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from omni.inputs import CALIBRATION, HELD_OUT
from omni.texts import documents, token_ids
from profiles.siblings import ctranslate2, smollm, whisper
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.text import CHAT_TEMPLATE, TOKENIZER
from qwen_omni_onnx.text.chat import Chat
from qwen_omni_onnx.thinker.prompts import SpecialTokens

__all__ = ["CONFIGS", "EMBEDDINGS", "ENGLISH", "SNAPSHOT", "write_embeddings", "write_snapshot"]

CONFIGS = Path(__file__).resolve().parents[2] / "pull/qwen2_5_omni_7b"  # the 7B's, of which only sizes change
SNAPSHOT, EMBEDDINGS = "snapshot", "embeddings"  # kinds of artifacts
ENGLISH = "en-*"  # names of the texts that SmolLM2 reads
_WEIGHTS = "model.safetensors"


def write_snapshot(
    model_bin: Path, gguf: Path, card: str, licenses: str, folder: Path, made_from: dict[str, Any]
) -> None:
    """Write both siblings as one checkpoint of Qwen2.5-Omni, whole or not at all.

    The encoder's embeddings are not as wide as the decoder's: each is fed and judged by itself.

    Args:
        model_bin: Whisper in CTranslate2's format.
        gguf: SmolLM2 in GGUF.
        card: Model card of the checkpoint.
        licenses: Texts of their licences.
        folder: Folder of the checkpoint.
        made_from: What the manifest says it was made from.

    Raises:
        UserError: A file is not what it should be, or something else is in the way.
    """
    variables, llama = ctranslate2.read(model_bin), smollm.read(gguf)
    audio_config = whisper.audio_config(variables)
    config = artifact.read_json(CONFIGS / "config.json")
    # float16 holds Whisper's weights exactly; SmolLM2's levels are rounded to 11 bits. Neither speaks.
    config |= {"torch_dtype": "float16", "enable_audio_output": False}
    thinker = config["thinker_config"]
    thinker |= llama.special_tokens
    # The hub's section says each of these twice.
    thinker["audio_config"] |= {**audio_config, "num_hidden_layers": audio_config["encoder_layers"]}
    thinker["text_config"] |= llama.text_config
    preprocessor = artifact.read_json(CONFIGS / "preprocessor_config.json")
    preprocessor["feature_size"] = audio_config["num_mel_bins"]
    with artifact.writing(folder, kind=SNAPSHOT, made_from=made_from) as beside:
        save_file({**whisper.tensors(variables), **llama.tensors}, beside / _WEIGHTS, {"format": "pt"})
        (beside / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (beside / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1) + "\n", encoding="utf-8")
        (beside / TOKENIZER).write_text(llama.tokenizer.to_str(), encoding="utf-8")
        (beside / CHAT_TEMPLATE).write_text(llama.chat_template, encoding="utf-8")
        (beside / "README.md").write_text(card, encoding="utf-8")
        (beside / "LICENSE").write_text(licenses, encoding="utf-8")


def write_embeddings(snapshot: Path, texts: Path, folder: Path, made_from: dict[str, Any]) -> None:
    """Write each English text as rows of the embedding table, [tokens, hidden] float32, in a file with its name.

    A text is encoded as it is: no chat template, no special token before or after it. A dialogue is laid out by the
    chat template.

    Args:
        snapshot: Checkpoint with tokenizer, chat template and embedding table.
        texts: Folder with texts and dialogues in ``calibration`` and ``held_out``.
        folder: Folder of the arrays, in ``calibration`` and ``held_out`` as well.
        made_from: What the manifest says they were made from.

    Raises:
        UserError: There is no text, a file is none, or something else is in the way.
    """
    chat = Chat(snapshot, SpecialTokens.of(artifact.read_json(snapshot / "config.json")).sound)
    with safe_open(snapshot / _WEIGHTS, "numpy") as weights:
        table = weights.get_tensor(smollm.EMBEDDING)
    with artifact.writing(folder, kind=EMBEDDINGS, made_from=made_from) as beside:
        for split in (CALIBRATION, HELD_OUT):
            (beside / split).mkdir()
            for name, document in documents(texts / split, ENGLISH):
                ids, _ = token_ids(chat, document)
                # Readable, too: into a file that is only written, NumPy writes by itself, and may lose its end unseen.
                with (beside / split / f"{name}.npy").open("w+b") as array:
                    np.save(array, table[ids].astype(np.float32))
