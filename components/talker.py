"""The Talker: a decoder that generates codec codes, 50 a second, from the Thinker's states and embeddings."""

from __future__ import annotations

from omni.component import WITHOUT_SPEECH, Component, Outliers
from omni.decoder import DecoderSpec

DECODER = DecoderSpec(
    graph="talker",
    section="talker_config",
    otherwise=f"the checkpoint has no Talker: {WITHOUT_SPEECH}",
    prefix="talker",
    head="codec_head",
    embedding="codec_embedding.npy",
    projection="thinker_to_talker_proj",
    speaks=True,
)

COMPONENT = Component(
    name="talker",
    summary=(
        "The Talker: a decoder that turns the Thinker's hidden states and embeddings into codec codes, 50 a second. "
        "`inputs_embeds` are in the Thinker's width: what the Thinker says plus the embedding of the last code, from "
        "`codec_embedding.npy`; the projection to the Talker's width is inside. `logits` are those that follow "
        "the tokens whose places `logits_to_keep` gives: -1 for the last one. Keys and values come and go as "
        "`past_key_values.N.*` and `present.N.*`."
    ),
    caveat=(
        "Pad batches on the right: padding on the left is not seen as such. Several new tokens on top of a past are "
        "for one row at a time. `qwen_omni_onnx.talker` runs the loop as transformers does."
    ),
    tensors=DECODER.tensors,
    contracts=DECODER.contracts,
    whole=DECODER.whole,
    runtime="qwen_omni_onnx.talker",
    example="""from pathlib import Path
import numpy as np
from qwen_omni_onnx.talker import open_talker

talker = open_talker(Path("."))  # the quantized graph, each file checked; quantized=False for float32
rows = np.random.default_rng(0).standard_normal((40, talker.decoder.width), np.float32)  # by a Thinker, in truth
codes = list(talker.speak(rows[:8], rows[8:], seed=0, max_new_codes=50))  # a second of speech, for token2wav""",
    constructed=True,
    matrices=DECODER.matrices,
    depth=("talker_config", "num_hidden_layers"),
    outliers={
        "*.input_layernorm.weight": Outliers(6, 4, 10),  # larger ones would leave each query only one key to attend to
        "*.post_attention_layernorm.weight": Outliers(6, 10, 30),
        "*.mlp.up_proj.weight": Outliers(24, 20, 60),  # silu(gate) * up, which breaks careless recipes
    },
)
