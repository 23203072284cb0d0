"""What Thinker and Talker are fed: sounds with the replies that come with them, and codes that say the replies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from omni.component import Component
from omni.inputs import CALIBRATION, HELD_OUT, Recording
from omni.params import Params
from omni.pieces.clips import Measuring, measure_clips
from omni.pieces.work import Pool
from omni.texts import read_text
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.talker.runtime import SAMPLING, Talker
from qwen_omni_onnx.text.chat import Chat
from qwen_omni_onnx.thinker.prompts import PromptBuilder, open_prompts

__all__ = [
    "SPLITS", "Recordings", "logits_of", "replied", "speaking_inputs", "speaking_recording", "talker_inputs", "told",
]  # fmt: skip

Recordings = Mapping[str, Iterable[Recording]]  # by split, computed lazily
SPLITS = (CALIBRATION, HELD_OUT)
_HIDDEN = "hidden_states"
_REPLY = 8  # tokens at the end that are taken for the reply where nothing says how many are
_CODES = 48  # of a recording: a second
_SAMPLING = Sampling(temperature=SAMPLING.temperature, top_k=SAMPLING.top_k, top_p=SAMPLING.top_p)


def replied(found: Recordings, thinker: Component, params: Params) -> Recordings:
    """Return what the Thinker reads of each sound: the shortest prompt with it, and the reply that comes with the clip.

    No graph runs: the reply is a text, and only rows of the embedding table are read.

    Args:
        found: The encoder's embeddings of each clip.
        thinker: The Thinker.
        params: Parameters; ``inputs.replies`` names the folder of replies, None for none. A clip without a file there
            has no reply.

    Raises:
        UserError: A file is no text.
    """
    replies, folder = params.component(thinker.name).inputs.replies, _onnx(thinker)
    prompts = open_prompts(folder)
    chat = Chat(folder, prompts.special_tokens.sound)

    def of_split(split: str) -> Iterator[Recording]:
        for recording in found[split]:
            reply = np.zeros(0, np.int64)
            if replies is not None and (file := Path(replies) / split / f"{recording.name}.txt").is_file():
                reply = chat.text_ids(read_text(file).strip())
            embeds = prompts.prompt_of_sound(recording.array).embeds
            yield Recording(recording.name, np.concatenate([embeds, prompts.embedding(reply)]), len(reply))

    return {split: of_split(split) for split in SPLITS}


def told(own: Recordings, thinker: Component, pool: Pool) -> Recordings:
    """Return what the Thinker tells the Talker of each of its recordings that has a reply.

    Hidden states come from the float32 graph in segments, without its head: it need not fit into memory.

    Args:
        own: The Thinker's recordings.
        thinker: The Thinker.
        pool: Processes that share the work.

    Raises:
        UserError: A recording has no token before the reply.
    """
    folder = _onnx(thinker)
    prompts = open_prompts(folder)
    stem, contract = thinker.graph(read_config(folder))
    have_reply = {split: [one for one in own[split] if one.reply != 0] for split in SPLITS}
    kept = {f"{split}/{one.name}": one for split in SPLITS for one in have_reply[split]}
    rows: dict[str, np.ndarray] = {}
    work = Measuring(folder / f"{stem}.onnx", contract, (_HIDDEN,), _together, _values)

    def take(key: str, _: str, hidden: np.ndarray) -> None:
        rows[key] = talker_inputs(prompts, kept[key].array, hidden, _tokens(kept[key]))

    measure_clips(work, {key: one.array for key, one in kept.items()}, take, "hidden states", pool)
    return {split: [one._replace(array=rows[f"{split}/{one.name}"]) for one in have_reply[split]] for split in SPLITS}


def talker_inputs(prompts: PromptBuilder, recording: np.ndarray, hidden: np.ndarray, reply: int) -> np.ndarray:
    """Return what the Talker is told of a recording, [tokens + 3, width].

    That is, for each token its hidden state, and its embedding unless it is sound; before the reply the mark that
    speech begins (a voice's own comes with the voices, which are another component's); after it, the end of the text
    and padding.

    Args:
        prompts: The Thinker's embeddings and special tokens.
        recording: What it was fed, [tokens, width].
        hidden: Its hidden states, [tokens, width].
        reply: Tokens at the end of the recording that are the reply.

    Raises:
        UserError: The recording has no token before the reply.
    """
    if len(recording) <= reply:
        raise UserError(
            f"a recording of {len(recording)} tokens; {reply} of a reply end it, and some must be before them"
        )
    special = prompts.special_tokens
    audio_mask = _between(recording, prompts.embedding(special.sound_begins), prompts.embedding(special.sound_ends))
    rows = hidden + np.where(audio_mask[:, None], np.float32(0), recording)
    begins, *ends = (prompts.embedding(token) for token in prompts.tts_tokens)
    return np.concatenate([rows[:-reply], begins[None], rows[-reply:], np.stack(ends)])


def speaking_recording(model: Talker, one: Recording) -> Recording:
    """Return what the Talker is fed while it says a reply, given what the Thinker tells it."""
    return one._replace(array=speaking_inputs(model, one.array, _tokens(one)))


def speaking_inputs(model: Talker, rows: np.ndarray, reply: int) -> np.ndarray:
    """Return what the Talker is fed while it speaks, [tokens, width]: the prompt, then code after code.

    Args:
        model: The Talker; it speaks, choosing its codes as it does at work.
        rows: What :func:`talker_inputs` gives, [tokens, width].
        reply: Tokens of the Thinker's reply.
    """
    fed_later = reply + 1  # rows that are not part of the prompt: the reply but its first token, the end, and padding
    prompt, rows = rows[:-fed_later], rows[-fed_later:]
    codes = model.speak(prompt, rows, _SAMPLING, max_new_codes=_CODES)
    return model.teacher_forced_embeddings(prompt, rows, np.fromiter(codes, np.int64))


def logits_of(model: Talker, one: Recording) -> Recording:
    """Return the logits of every token of a recording, [tokens, vocabulary]: the best codes come next."""
    return one._replace(array=model.decoder.forward(one.array[None], np.array([len(one.array)]))[0][0])


def _onnx(component: Component) -> Path:
    return Path("models/onnx") / component.name


def _together(names: list[str]) -> list[list[str]]:
    return [names]


def _values(clip: str, name: str, values: np.ndarray) -> np.ndarray:
    return values


def _tokens(recording: Recording) -> int:
    return _REPLY if recording.reply is None else recording.reply


def _between(rows: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return which of the rows [tokens, width] lie between a first and a last one that equal these, [tokens]."""
    opened = np.flatnonzero((rows == begins).all(1))
    closed = np.flatnonzero((rows == ends).all(1))
    audio_mask = np.zeros(len(rows), bool)
    if len(opened) and len(closed):
        audio_mask[opened[0] + 1 : closed[-1]] = True
    return audio_mask
