"""The Thinker's language model: computes logits and the Talker's input from embeddings of text and sound."""

from __future__ import annotations

from omni.component import Component, Outliers
from omni.decoder import DecoderSpec

DECODER = DecoderSpec(
    graph="thinker",
    section="thinker_config.text_config",
    otherwise="the checkpoint has no Thinker, or is not Qwen2.5-Omni",
    prefix="thinker",
    head="lm_head",
    embedding="token_embedding.npy",
)

COMPONENT = Component(
    name="thinker",
    summary=(
        "The Thinker's language model: `inputs_embeds`, rows of `token_embedding.npy` with the encoder's embeddings "
        "where there is sound, to the `hidden_states`, after the final normalization, that the Talker reads, and to "
        "the `logits` that follow the tokens whose places `logits_to_keep` gives: -1 for the last one. Keys and values "
        "come and go as `past_key_values.N.*` and `present.N.*`."
    ),
    caveat=(
        "Text and sound only: images and videos need positions of three axes. Pad batches on the right: padding on the "
        "left is not seen as such. Several new tokens on top of a past are for one row at a time."
    ),
    tensors=DECODER.tensors,
    contracts=DECODER.contracts,
    whole=DECODER.whole,
    runtime="qwen_omni_onnx.thinker",
    example="""from pathlib import Path
import numpy as np
from qwen_omni_onnx.thinker import open_thinker

thinker = open_thinker(Path("."))  # the quantized graph, each file checked; quantized=False for float32
embeddings = np.random.default_rng(0).standard_normal((50, thinker.decoder.width), np.float32)  # by an encoder
prompt = thinker.prefill(thinker.prompt_of_sound(embeddings))
ids = [token.id for token in prompt.generate(max_new_tokens=8)]  # token.talker_input is what the Talker hears""",
    constructed=True,
    matrices=DECODER.matrices,
    text=True,
    depth=("thinker_config", "text_config", "num_hidden_layers"),
    outliers={
        "*.input_layernorm.weight": Outliers(12, 4, 10),  # larger ones would leave each query only one key to attend to
        "*.post_attention_layernorm.weight": Outliers(12, 20, 60),
        "*.model.norm.weight": Outliers(12, 30, 150),  # of the hidden states
        "*.mlp.up_proj.weight": Outliers(48, 20, 60),  # silu(gate) * up, which breaks careless recipes
    },
)
