"""Published folders of several components, found and opened as one: ``qwen_omni_onnx.load(folder)``."""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx import talker, thinker, token2wav
from qwen_omni_onnx.checked import check_once
from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.direct import Between, Direct, open_projection
from qwen_omni_onnx.listen import Listener
from qwen_omni_onnx.live import LiveQuestion
from qwen_omni_onnx.positions import require_positions
from qwen_omni_onnx.reply import Reply, ReplyOptions, build_prompt
from qwen_omni_onnx.sampler import pick_variant
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, embeddings
from qwen_omni_onnx.sound.question import Audio, read_sounds
from qwen_omni_onnx.talker.runtime import positions as talker_positions
from qwen_omni_onnx.text.chat import SYSTEM, Message, conversation, with_system
from qwen_omni_onnx.text.confined_chat import ConfinedChat
from qwen_omni_onnx.thinker.prompts import SpecialTokens
from qwen_omni_onnx.thinker.runtime import positions as thinker_positions
from qwen_omni_onnx.trust import Trust, require_signed
from qwen_omni_onnx.voices import Voice, pick, read_voices

__all__ = ["CHAIN", "SHORTCUT", "Bundle", "find", "load", "published"]

CHAIN = ("frontend", "encoder", "thinker", "talker", "token2wav")  # sound to speech
SHORTCUT = ("frontend", "encoder", "projection", "token2wav")  # sound to sound, with nobody who thinks or speaks
_DEPTH = 2  # folders below the given one: models/published/<component>/<name>


class Bundle:
    """What :func:`load` found. Each part is opened when it is first used, and stays open.

    Attributes:
        folders: Published folder of each component that is there.
    """

    def __init__(self, folders: dict[str, Path], float32: Container[str], threads: int) -> None:
        self.folders = folders
        self._float32, self._threads = float32, threads

    def check(self, needed: Collection[str], trust: Trust | None = None) -> None:
        """Check that every byte of these components is as published: see :func:`qwen_omni_onnx.checked.check_once`.

        Args:
            needed: The components.
            trust: Whom each has to be signed by; None does not ask.

        Raises:
            UserError: A component is not as published, is not signed by whom it has to be, or is not there.
        """
        folders = [self._folder(name) for name in needed]
        if trust is not None:
            for folder in folders:
                require_signed(folder, artifact.read_manifest(folder), trust)
        for folder in folders:
            check_once(folder)

    @cached_property
    def listener(self) -> Listener:
        """Front end and encoder: sound to embeddings."""
        return Listener(self._folder("frontend"), self._folder("encoder"), self._quantized("encoder"))

    @cached_property
    def thinker(self) -> thinker.Thinker:
        """The Thinker: a prompt of text and sound, to text and to what the Talker reads."""
        return thinker.open_thinker(self._folder("thinker"), **self._options("thinker"), stop_spinning=True)

    @cached_property
    def chat(self) -> ConfinedChat:
        """Tokenizer and chat template: conversations to tokens and back."""
        folder = self._folder("thinker")
        return ConfinedChat(folder, SpecialTokens.of(read_config(folder)).sound)

    @cached_property
    def talker(self) -> talker.Talker:
        """The Talker: what the Thinker says, to codec codes."""
        return talker.open_talker(self._folder("talker"), **self._options("talker"), stop_spinning=True)

    @cached_property
    def token2wav(self) -> token2wav.Token2Wav:
        """token2wav: codec codes to sound."""
        return token2wav.open_token2wav(self._folder("token2wav"), **self._options("token2wav"))

    def direct(self, between: Between | None = None) -> Direct:
        """Return the shortcut from sound to sound, with or without something of one's own in its middle."""
        session = open_projection(self._folder("projection"), self._quantized("projection"), self._threads)
        return Direct(self.listener, session, self.token2wav, between)

    @property
    def voices(self) -> dict[str, Voice]:
        """The model's own voices, by name."""
        return read_voices(self._folder("token2wav") / VOICES)

    def voice(self, name_or_folder: str | None = None) -> Voice:
        """Return a voice by its name, or a user's own from a folder; the first one by name if none is asked for.

        Raises:
            UserError: There is none of that name; the message names those that there are.
        """
        voices = self.voices
        return pick(voices, min(voices) if name_or_folder is None else name_or_folder)

    def reply(
        self,
        text: str | None = None,
        *,
        audio: Audio | Sequence[Audio] | None = None,
        system: str | None = None,
        messages: Sequence[Message] | None = None,
        options: ReplyOptions | None = None,
        clock: Clock | None = None,
        **changes: Any,
    ) -> Reply:
        """Return the spoken reply to a text, a sound, or both: iterate over it for text, codes and sound as they come.

        Nothing is computed here, and nothing but small files is read: what cannot be replied to is refused at once.

        Args:
            text: Text to reply to.
            audio: Sound to reply to, or several in order, before the text: paths, or samples with their rate: see
                :func:`qwen_omni_onnx.sound.question.read_sounds`.
            system: System prompt; None takes the one that speech was trained with.
            messages: Conversation of several turns instead of ``text``: each message is a mapping with a ``role``
                (``system``, ``user``, ``assistant``) and a ``content``, which is a text, or a list of parts
                ``{"type": "text", "text": ...}`` and ``{"type": "audio"}``; the latter stand for ``audio``, in order.
                ``system`` comes in front, unless the first message is a system prompt.
            options: How to reply; None takes the defaults of :class:`ReplyOptions`.
            clock: Clock that the time of each part is added to.
            changes: Fields of :class:`ReplyOptions` in place of those of ``options``: ``voice="Ethan"``, ``seed=3``.

        Raises:
            UserError: There is neither text nor sound; a sound cannot be read, or is too short; the prompt is too long;
                there is no such voice or variant; or a value is impossible.
        """
        sounds = read_sounds(audio)
        if messages is None:
            turns = conversation(text, len(sounds), SYSTEM if system is None else system)
        elif text is not None:
            raise UserError("text: does nothing beside messages; put it into the last of them")
        else:
            turns = with_system(messages, system)
        clock, options = clock or Clock(), replace(options or ReplyOptions(), **changes)

        def prompt() -> thinker.Prompt:
            with clock.running("listening"):  # the prompt holds the embeddings, and nothing else does: they may be long
                return build_prompt(self, turns, map(self._embed, sounds))

        reply = Reply(self, prompt, options, clock)
        self.require_variant(options.variant)
        counts = [embeddings(len(sound)) for sound in sounds]
        positions = thinker_positions(self._config("thinker")), talker_positions(self._config("talker"))
        require_positions(len(self.chat.ids(turns, counts)), sum(counts), *positions)
        return reply

    def live_question(
        self,
        *,
        system: str | None = None,
        rate: float = INPUT_SAMPLE_RATE,
        options: ReplyOptions | None = None,
        clock: Clock | None = None,
        **changes: Any,
    ) -> LiveQuestion:
        """Begin a question that is heard while it is asked: feed it with sound as that comes, then ask for the reply.

        What comes before the sound is read here, blocks of 2 s as soon as they are whole: when the question ends, its
        last block is all that is left to be read.

        Args:
            system: System prompt; None takes the one that speech was trained with.
            rate: Rate of the samples in Hz.
            options: How to reply; None takes the defaults of :class:`ReplyOptions`.
            clock: Clock that the time of each part is added to from the end of the question on, and which begins there.
            changes: Fields of :class:`ReplyOptions` in place of those of ``options``.

        Raises:
            UserError: The rate is impossible; there is no such voice or variant; the system prompt leaves no room for a
                question; or a value is impossible.
        """
        options = replace(options or ReplyOptions(), **changes)
        self.require_variant(options.variant)
        return LiveQuestion(self, system, rate, options, clock)

    def listen(self, audio: Audio) -> np.ndarray:
        """Return the embeddings that the Thinker reads of a sound, [embeddings, width] float32, 25 a second.

        Args:
            audio: The sound, as :meth:`reply` takes it.

        Raises:
            UserError: The sound cannot be read, or is too short.
        """
        (sound,) = read_sounds([audio])
        return self._embed(sound)

    def vocode(
        self, codes: np.ndarray, voice: Voice | str | None = None, *, seed: int = 0, variant: str | None = None
    ) -> np.ndarray:
        """Return the speech of codec codes, [480 * codes] float32, 24 kHz.

        Args:
            codes: Codes, [codes] int64, 50 a second.
            voice: Voice that speaks, its name, or a folder with a user's own; None takes the first one by name.
            seed: Seed for the initial noise.
            variant: Name of the way to solve the ODE; None: see :func:`qwen_omni_onnx.sampler.pick_variant`.

        Raises:
            UserError: There are no codes, too many, or one is out of range; there is no such voice or variant.
        """
        speaker = voice if isinstance(voice, Voice) else self.voice(voice)
        return self.token2wav.speak(codes, speaker.cond, speaker.ref_mel, seed=seed, variant=variant)

    def require_variant(self, name: str | None) -> None:
        """Refuse a way to solve the ODE that there is none of: no graph is opened for it.

        Args:
            name: As :meth:`vocode` takes it.

        Raises:
            UserError: There is none of that name; the message names those that there are.
        """
        pick_variant(token2wav.read_variants(self._folder("token2wav")), name)

    def _embed(self, sound: np.ndarray) -> np.ndarray:
        return self.listener.embed(self.listener.features(sound, INPUT_SAMPLE_RATE))

    def _config(self, component: str) -> dict[str, Any]:
        return read_config(self._folder(component))

    def _folder(self, component: str) -> Path:
        if component not in self.folders:
            raise UserError(f"no published {component} here; there are: {', '.join(sorted(self.folders))}")
        return self.folders[component]

    def _quantized(self, component: str) -> bool:
        return component not in self._float32

    def _options(self, component: str) -> dict[str, Any]:
        """Return which graph is opened, and the threads: those asked for, or those that were found best for it."""
        quantized = self._quantized(component)
        best = artifact.read_manifest(self._folder(component)).get("best_session_options", {})
        kind = "quantized" if quantized else "float32"
        found = {options[kind]["threads"] for options in best.values() if kind in options}
        threads = found.pop() if len(found) == 1 else 0  # where graphs of one component differ, none is best for all
        enough = threads <= (os.cpu_count() or 1)
        return {"quantized": quantized, "threads": self._threads or (threads if enough else 0)}


def load(
    folder: str | Path,
    *,
    needed: Collection[str] = CHAIN,
    float32: Container[str] = (),
    threads: int = 0,
    trust: Trust | None = None,
) -> Bundle:
    """Find published components under a folder, and check that every byte of those that are needed is as published.

    Bytes are read the first time, and after that of files whose size or time is another: see
    :func:`qwen_omni_onnx.checked.check_once`.

    Args:
        folder: Folder that holds the published folders, side by side or in one for each component, as in
            ``models/published``.
        needed: Components that must be there.
        float32: Components to run with their float32 graph, where there is a quantized one, too.
        threads: Intra-op threads of each session; 0 takes the number that was found best when the component was
            published, if it was sought and there are as many cores here, else ONNX Runtime's choice.
        trust: Whom each component that is needed has to be signed by; None does not ask.

    Raises:
        UserError: A component is missing, is there twice, is not as published, or is not signed by whom it has to be;
            one line says which.
    """
    bundle = Bundle(find(folder, needed), float32, threads)
    bundle.check(needed, trust)
    return bundle


def find(folder: str | Path, needed: Collection[str] = CHAIN) -> dict[str, Path]:
    """Return the published folder of each component under a folder; nothing but manifests is read.

    Args:
        folder: Folder, as :func:`load` takes it.
        needed: Components that must be there.

    Raises:
        UserError: A component is missing, or is there twice.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; give one with published components, as models/published is after dvc repro"
        )
    folders: dict[str, Path] = {}
    for place, manifest in published(root).items():
        name = manifest.get("component")
        if name in folders:
            raise UserError(f"{root}: two of {name}: {folders[name]} and {place}; give a folder that holds one")
        folders[str(name)] = place
    missing = [name for name in needed if name not in folders]
    if missing:
        raise UserError(f"{root}: no published {' and '.join(missing)} in it; build or download what is missing")
    return folders


def published(root: Path) -> dict[Path, dict[str, Any]]:
    """Return the folders at or below ``root`` that are published artifacts, and the manifest of each.

    Hidden ones are left out: what a publisher that was killed had not put in its place yet.
    """
    places = [root]
    for depth in range(_DEPTH + 1):
        found = [path.parent for path in root.glob("/".join([*["[!.]*"] * depth, artifact.MANIFEST]))]
        places += [place for place in sorted(found) if place not in places]
    manifests = {place: artifact.read_manifest(place) for place in places if (place / artifact.MANIFEST).is_file()}
    return {place: manifest for place, manifest in manifests.items() if manifest.get("kind") == "published"}
