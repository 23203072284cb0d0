"""Published models that reply to questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import qwen_omni_onnx
from omni.pieces.work import Place, Pool
from omni.questions import Question
from omni.replies import LISTENER, TRANSCRIBE, Answer, RecordedChain, RecordedReply, ReplyLimits, depends_on, record
from qwen_omni_onnx import __version__
from qwen_omni_onnx.bundle import CHAIN, Bundle, find
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.published import graphs_of
from qwen_omni_onnx.reply import AudioChunk, ReplyOptions, build_prompt
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, read_audio
from qwen_omni_onnx.text.chat import conversation
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE

__all__ = ["Chain", "Replying"]

_GREEDY = Sampling(greedy=True)


@dataclass(frozen=True)
class Chain:
    """The models.

    Attributes:
        models: Folder with published components.
        float32: Components whose float32 graphs run.
    """

    models: Path
    float32: tuple[str, ...] = ()

    @classmethod
    def in_float32(cls, models: Path) -> Chain:
        """Return the chain of all float32 graphs that are published; none of their bytes are checked yet.

        Raises:
            UserError: None is.
        """
        folders = find(models)
        quantized = {name: artifact.read_manifest(folders[name]).get("quantization", {}) for name in CHAIN}
        found = tuple(
            name
            for name, stems in quantized.items()
            if stems and all(path.is_file() for path in graphs_of(folders[name], stems, ()).values())
        )
        if not found:
            raise UserError(f"{models}: no float32 graphs to compare with; give --against a folder with other models")
        return cls(models, found)

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Published folder of each component.

        Raises:
            UserError: One is missing, or is not as published.
        """
        return qwen_omni_onnx.load(self.models, float32=self.float32).folders

    @property
    def described(self) -> str:
        """The models in words."""
        kind = f"float32 {', '.join(self.float32)}" if self.float32 else "as published"
        return f"{self.models}, {kind}"

    @property
    def prints(self) -> dict[str, str]:
        """Fingerprint of each published folder, by component."""
        return {name: artifact.fingerprint(self.folders[name]) for name in CHAIN}

    @property
    def synthetic(self) -> bool:
        """Whether any of the weights are synthetic, or may be."""
        manifests = (artifact.read_manifest(self.folders[name]) for name in CHAIN)
        return any(manifest.get("synthetic_weights", True) for manifest in manifests)

    def record(self, questions: Sequence[Question], folder: Path, limits: ReplyLimits, pool: Pool) -> None:
        """Record the replies to questions: see :func:`omni.replies.record`.

        The Thinker is greedy; the Talker samples, as the model was made to, with the same seed for each question. The
        models are open meanwhile: two chains at once would take twice the memory.

        Raises:
            UserError: The models cannot be opened, or a reply cannot be written.
        """
        asked = {question.name: question for question in questions}
        models = [self.prints, self.float32, asdict(limits), __version__]
        wanted = {name: depends_on(question, *models) for name, question in asked.items()}

        def reply_all(names: Sequence[str], take: Callable[[str, Answer], None]) -> None:
            sounds = tuple(Path(sound) for name in names if (sound := asked[name].sound))
            work = Replying({name: self.folders[name] for name in CHAIN}, self.float32, sounds, limits)
            pool.run(work, {name: (asked[name], wanted[name]) for name in names}, f"replies in {folder}", take)

        record(folder, RecordedChain(self.described, self.synthetic, limits), wanted, reply_all)


@dataclass(frozen=True)
class Replying:
    """The work of replying to questions.

    Attributes:
        folders: Published folder of each component.
        float32: Components whose float32 graphs run.
        sounds: Recordings among the questions.
        limits: How replies begin and end.
    """

    folders: Mapping[str, Path]
    float32: tuple[str, ...]
    sounds: tuple[Path, ...]
    limits: ReplyLimits

    @property
    def needs(self) -> list[Path]:
        """The models, and the recordings."""
        return [*self.folders.values(), *self.sounds]

    def open(self, place: Place) -> Callable[[tuple[Question, str]], Answer]:
        """Return what replies to a question, given the SHA-256 of everything that its reply depends on.

        Raises:
            UserError: The models cannot be opened.
        """
        bundle = Bundle({name: place(folder) for name, folder in self.folders.items()}, self.float32, threads=0)
        bundle.check(CHAIN)

        def reply(asked: tuple[Question, str]) -> Answer:
            question, made_from = asked
            audio = place(Path(question.sound)) if question.sound else None
            return _reply(bundle, question, audio, made_from, self.limits)

        return reply


def _reply(bundle: Bundle, question: Question, audio: Path | None, made_from: str, limits: ReplyLimits) -> Answer:
    options = ReplyOptions(
        thinker=_GREEDY,
        seed=limits.seed,
        max_new_tokens=limits.max_new_tokens,
        max_new_codes=limits.max_new_codes,
    )
    reply = bundle.reply(question.text, audio=audio, options=options)
    sounds = [event.waveform for event in reply if isinstance(event, AudioChunk)]
    waveform = np.concatenate(sounds) if sounds else np.empty(0, np.float32)
    recorded = RecordedReply(
        made_from=made_from,
        text=reply.text,
        seconds=len(waveform) / OUTPUT_SAMPLE_RATE,
        runs_on=len(reply.codes) >= limits.max_new_codes and len(reply.tokens) < limits.max_new_tokens,
        understood=_understood(bundle, audio, limits.max_new_tokens) if audio else None,
    )
    return recorded, waveform


def _understood(bundle: Bundle, audio: Path, max_new_tokens: int) -> str:
    """Return what the Thinker writes down of a sound, without speaking."""
    heard = bundle.listener.embed(bundle.listener.features(read_audio(audio), INPUT_SAMPLE_RATE))
    prompt = build_prompt(bundle, conversation(TRANSCRIBE, 1, LISTENER), [heard])
    tokens = bundle.thinker.prefill(prompt, reserve=max_new_tokens).generate(_GREEDY, max_new_tokens=max_new_tokens)
    decode = bundle.chat.stream()
    return "".join(decode(token.id) for token in tokens)
