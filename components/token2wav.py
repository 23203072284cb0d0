"""token2wav: a diffusion transformer (DiT) and a vocoder (BigVGAN) that turn codec codes into a 24 kHz waveform.

Three graphs: the condition runs once per utterance, the step once per evaluation of the ODE, the vocoder once at the
end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omni.checkpoint import TensorSpec
from omni.component import WITHOUT_SPEECH, Component, Config, Outliers, require_speech
from qwen_omni_onnx.common.contract import GraphContract, Port
from qwen_omni_onnx.common.errors import UserError

CONDITION, STEP, VOCODER = "dit_condition", "dit_step", "bigvgan"
DIT, BIGVGAN = "token2wav.code2wav_dit_model", "token2wav.code2wav_bigvgan_model"
_DTYPE = "F32"  # whatever the dtype of the rest of the checkpoint
_TIME_FEATURES = 256  # sines and cosines of the time, which the time embedding reads
_FASTEST, _SLOW = 1000, 6  # rad for a unit of time: of the first feature; what synthetic weights hear well
_DIT_NEEDS = (
    "block_size", "emb_dim", "enc_attention_channels", "enc_channels", "enc_dilations", "enc_dim", "enc_emb_dim",
    "enc_kernel_sizes", "enc_res2net_scale", "enc_se_channels", "ff_mult", "head_dim", "hidden_size",
    "look_ahead_layers", "look_backward_layers", "max_position_embeddings", "mel_dim", "num_attention_heads",
    "num_embeds", "num_hidden_layers", "repeats",
)  # fmt: skip
_BIGVGAN_NEEDS = (
    "mel_dim", "resblock_dilation_sizes", "resblock_kernel_sizes", "upsample_initial_channel",
    "upsample_kernel_sizes", "upsample_rates",
)  # fmt: skip


def dit_config(config: Config) -> dict[str, Any]:
    """Return the DiT's section of ``config.json``.

    Raises:
        UserError: The checkpoint has no token2wav, or one that this version does not support.
    """
    dit = _section(config, "dit_config", _DIT_NEEDS)
    layers = {*dit["look_ahead_layers"], *dit["look_backward_layers"]}
    if not layers <= set(range(dit["num_hidden_layers"])):
        raise UserError("config.json: token2wav_config.dit_config names layers to look ahead or back that it has not")
    if not dit["look_backward_layers"]:
        raise UserError("config.json: token2wav_config.dit_config: no layer looks back; is it a Qwen2.5-Omni?")
    if dit["head_dim"] * dit["num_attention_heads"] != dit["hidden_size"] or dit["head_dim"] % 2:
        raise UserError("config.json: token2wav_config.dit_config: heads of an even size must make up hidden_size")
    return dit


def bigvgan_config(config: Config) -> dict[str, Any]:
    """Return the vocoder's section of ``config.json``.

    Raises:
        UserError: The checkpoint has no token2wav, or one that this version does not support.
    """
    bigvgan = _section(config, "bigvgan_config", _BIGVGAN_NEEDS)
    if len(bigvgan["upsample_rates"]) != len(bigvgan["upsample_kernel_sizes"]):
        raise UserError(
            "config.json: token2wav_config.bigvgan_config: upsample_rates and _kernel_sizes differ in number"
        )
    return bigvgan


def samples_per_frame(config: Config) -> int:
    """Return the number of samples per mel frame: the product of the vocoder's upsampling rates."""
    product = 1
    for rate in bigvgan_config(config)["upsample_rates"]:
        product *= rate
    return product


def _section(config: Config, name: str, needed: tuple[str, ...]) -> dict[str, Any]:
    require_speech(config)
    section = config.get("token2wav_config", {}).get(name)
    if not isinstance(section, dict):
        raise UserError(f"config.json: no token2wav_config.{name}: the checkpoint has no token2wav: {WITHOUT_SPEECH}")
    missing = [key for key in needed if key not in section]
    if missing:
        raise UserError(
            f"config.json: token2wav_config.{name} has no {missing[0]}; not a configuration of Qwen2.5-Omni"
        )
    for key in needed:
        if isinstance(section[key], int) and (isinstance(section[key], bool) or section[key] <= 0):
            raise UserError(
                f"config.json: token2wav_config.{name}.{key} must be a positive integer, not {section[key]}"
            )
    return section


def _tensors(config: Config) -> dict[str, TensorSpec]:
    shapes = {f"{DIT}.{name}": shape for name, shape in _dit_shapes(dit_config(config)).items()}
    shapes |= {f"{BIGVGAN}.{name}": shape for name, shape in _bigvgan_shapes(bigvgan_config(config)).items()}
    return {name: TensorSpec(_DTYPE, shape) for name, shape in shapes.items()}


def _dit_shapes(dit: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, mels, inner = dit["hidden_size"], dit["mel_dim"], dit["hidden_size"] * dit["ff_mult"]
    fed = mels + dit["enc_dim"] + dit["enc_emb_dim"] + dit["emb_dim"]
    shapes: dict[str, tuple[int, ...]] = {"text_embed.codec_embed.weight": (dit["num_embeds"] + 1, dit["emb_dim"])}
    shapes |= _linear("time_embed.time_mlp.0", width, _TIME_FEATURES) | _linear("time_embed.time_mlp.2", width, width)
    shapes |= _linear("input_embed.proj", width, fed) | _linear("proj_out", mels, width)
    shapes |= _linear("norm_out.linear", 2 * width, width)
    shapes |= {f"input_embed.spk_encoder.{name}": shape for name, shape in _speaker_shapes(dit).items()}
    for layer in (f"transformer_blocks.{number}" for number in range(dit["num_hidden_layers"])):
        shapes |= _linear(f"{layer}.attn_norm.linear", 6 * width, width)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= _linear(f"{layer}.attn.{name}", width, width)
        shapes |= _linear(f"{layer}.ff.ff.0", inner, width) | _linear(f"{layer}.ff.ff.3", width, inner)
    return shapes


def _speaker_shapes(dit: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the ECAPA-TDNN (arXiv 2005.07143) that embeds the speaker of a reference mel."""
    channels, kernels, squeezed = dit["enc_channels"], dit["enc_kernel_sizes"], dit["enc_se_channels"]
    last, attention, scale = channels[-1], dit["enc_attention_channels"], dit["enc_res2net_scale"]
    shapes = _conv("blocks.0.conv", channels[0], dit["mel_dim"], kernels[0])
    for number in range(1, len(channels) - 1):
        before, here, block = channels[number - 1], channels[number], f"blocks.{number}"
        shapes |= _conv(f"{block}.tdnn1.conv", here, before, 1) | _conv(f"{block}.tdnn2.conv", here, here, 1)
        for branch in range(scale - 1):
            shapes |= _conv(
                f"{block}.res2net_block.blocks.{branch}.conv", here // scale, here // scale, kernels[number]
            )
        shapes |= _conv(f"{block}.se_block.conv1", squeezed, here, 1) | _conv(
            f"{block}.se_block.conv2", here, squeezed, 1
        )
    shapes |= _conv("mfa.conv", last, last, kernels[-1])
    shapes |= _conv("asp.tdnn.conv", attention, 3 * last, 1) | _conv("asp.conv", last, attention, 1)
    return shapes | _conv("fc", dit["enc_dim"], 2 * last, 1)


def _bigvgan_shapes(bigvgan: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width = bigvgan["upsample_initial_channel"]
    shapes = _conv("conv_pre", width, bigvgan["mel_dim"], 7)
    block = 0
    for stage, kernel in enumerate(bigvgan["upsample_kernel_sizes"]):
        wide, width = width, width // 2
        shapes |= {f"ups.{stage}.0.weight": (wide, width, kernel), f"ups.{stage}.0.bias": (width,)}
        for size, dilations in zip(bigvgan["resblock_kernel_sizes"], bigvgan["resblock_dilation_sizes"], strict=True):
            for number in range(len(dilations)):
                for convolution in (f"convs1.{number}", f"convs2.{number}"):
                    shapes |= _conv(f"resblocks.{block}.{convolution}", width, width, size)
                for activation in (2 * number, 2 * number + 1):
                    shapes |= _snake(f"resblocks.{block}.activations.{activation}", width)
            block += 1
    return shapes | _snake("activation_post", width) | {"conv_post.weight": (1, width, 7)}


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _conv(name: str, out: int, into: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into, kernel), f"{name}.bias": (out,)}


def _snake(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.act.alpha": (channels,), f"{name}.act.beta": (channels,)}


def _contracts(config: Config) -> dict[str, GraphContract]:
    dit, rate = dit_config(config), samples_per_frame(config)
    mels, width, block = dit["mel_dim"], dit["hidden_size"], dit["block_size"]
    frames = ("batch", "blocks", block)
    condition = Port("condition", "FLOAT", ("branches", *frames, width))
    bias = Port("key_bias", "FLOAT", frames)
    kept = ("branches", "batch", len(dit["look_backward_layers"]), 2, block, width)
    return {
        CONDITION: GraphContract(
            inputs=(
                Port("codes", "INT64", ("batch", "codes")),
                Port("code_lens", "INT64", ("batch",)),
                Port("cond", "FLOAT", ("batch", dit["enc_emb_dim"])),
                Port("ref_mel", "FLOAT", ("batch", "ref_frames", mels)),
            ),
            outputs=(Port("condition", "FLOAT", (2, *frames, width)), bias),
            ir_version=10,
            length="codes",
            symbols=dit["num_embeds"],
            derived={"blocks": lambda codes: -(-dit["repeats"] * codes // block)},
            free={"ref_frames": 300},
        ),
        STEP: GraphContract(
            inputs=(
                Port("mel", "FLOAT", (*frames, mels)),
                condition,
                bias,
                Port("evaluation", "INT64", ()),
                Port("past", "FLOAT", kept),
                Port("past_bias", "FLOAT", ("batch", block)),
                Port("present_block", "INT64", ()),
            ),
            outputs=(Port("velocity", "FLOAT", (*frames, mels)), Port("present", "FLOAT", kept)),
            ir_version=10,
            length="blocks",
            free={"branches": 2},
        ),
        VOCODER: GraphContract(
            inputs=(Port("mel", "FLOAT", ("batch", mels, "frames")),),
            outputs=(Port("waveform", "FLOAT", ("batch", "samples")),),
            ir_version=10,
            length="frames",
            derived={"samples": lambda frames: rate * frames},
        ),
    }


def _whole(config: Config) -> GraphContract:
    dit, rate = dit_config(config), samples_per_frame(config)
    return GraphContract(
        inputs=(
            Port("codes", "INT64", ("batch", "codes")),
            Port("code_lens", "INT64", ("batch",)),
            Port("cond", "FLOAT", ("batch", dit["enc_emb_dim"])),
            Port("ref_mel", "FLOAT", ("batch", "ref_frames", dit["mel_dim"])),
            Port("noise", "FLOAT", ("batch", "frames", dit["mel_dim"])),
        ),
        outputs=(Port("waveform", "FLOAT", ("batch", "samples")),),
        ir_version=10,
        length="codes",
        symbols=dit["num_embeds"],
        derived={
            "frames": lambda codes: dit["repeats"] * codes,
            "samples": lambda codes: rate * dit["repeats"] * codes,
        },
        free={"ref_frames": 300},
    )


def _fewer_layers(config: dict[str, Any]) -> None:
    """Move looking back and ahead to layers that remain, where those that did are dropped: tests need both."""
    dit = config["token2wav_config"]["dit_config"]
    layers = dit["num_hidden_layers"]
    for key, otherwise in (("look_backward_layers", 0), ("look_ahead_layers", layers - 1)):
        dit[key] = [layer for layer in dit[key] if layer < layers] or [otherwise]


def _slow_times(features: int) -> np.ndarray:
    """Return the factors of synthetic weights on the features of the time: sines and cosines of 1000 to 0.1 rad.

    A random network that heard the fast ones would turn its velocity by a tenth when the time moves by a thousandth,
    and no solver would come near the solution: what variants are compared by would measure none of them. Rounded, so
    that they are the same on every machine.
    """
    frequencies = _FASTEST * np.exp(np.arange(features // 2) * -np.log(10_000) / (features // 2 - 1))
    factors = 1 / (1 + (frequencies / _SLOW) ** 2)
    return np.tile(np.round(factors * 2**20) / 2**20, 2)


COMPONENT = Component(
    name="token2wav",
    summary=(
        "token2wav: codec codes, 50 a second, to a 24 kHz waveform. `dit_condition` runs once an utterance, `dit_step` "
        "once an evaluation of the ODE that turns noise into mel frames (classifier-free guidance inside), `bigvgan` "
        "turns the mel frames into sound. Memory and time grow linearly with the length."
    ),
    caveat=(
        "The sampler between the graphs is a loop of 36 evaluations as in transformers, or of 8 to 24 by its variants: "
        "`qwen_omni_onnx.token2wav` runs it. Noise is an input: the same noise gives the same sound."
    ),
    tensors=_tensors,
    contracts=_contracts,
    whole=_whole,
    runtime="qwen_omni_onnx.token2wav",
    example="""from pathlib import Path
import numpy as np
from qwen_omni_onnx.token2wav import open_token2wav
from qwen_omni_onnx.voices import read_voices

model = open_token2wav(Path("."))  # the INT8 graphs, each file checked; quantized=False for float32
voice = read_voices(Path("speakers.safetensors"))["Chelsie"]
codes = np.random.default_rng(0).integers(model.codes, size=50)  # a second of what a Talker would say
waveform = model.speak(codes, voice.cond, voice.ref_mel, seed=0, variant="reference")  # [24000] float32, 24 kHz""",
    voices=True,
    depth=("token2wav_config", "dit_config", "num_hidden_layers"),
    fewer_layers=_fewer_layers,
    columns={f"{DIT}.time_embed.time_mlp.0.weight": _slow_times},
    outliers={f"{DIT}.transformer_blocks.*.attn_norm.linear.weight": Outliers(48, 20, 60)},
    # The signal keeps its magnitude through every stage, each residual block adds to it, and the waveform varies.
    gains={
        f"{BIGVGAN}.*.act.*": 0.7,
        f"{BIGVGAN}.*.bias": 0.05,
        f"{BIGVGAN}.conv_pre.weight": 4.0,
        f"{BIGVGAN}.ups.*.weight": 1.8,
        f"{BIGVGAN}.resblocks.*.convs1.*.weight": 1.2,
        f"{BIGVGAN}.conv_post.weight": 0.25,
    },
)
