"""Published folders of several components, found and opened as one: ``qwen_omni_onnx.load(folder)``."""

from __future__ import annotations

import os
from collections.abc import Collection, Container
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen_omni_onnx import talker, thinker, token2wav
from qwen_omni_onnx.checked import check_once
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.direct import Between, Direct, open_projection
from qwen_omni_onnx.listen import Listener
from qwen_omni_onnx.text.chat import Chat
from qwen_omni_onnx.voices import Voice, pick, read_voices

__all__ = ["CHAIN", "SHORTCUT", "Bundle", "find", "load", "published"]

CHAIN = ("frontend", "encoder", "thinker", "talker", "token2wav")  # sound to speech
SHORTCUT = ("frontend", "encoder", "projection", "token2wav")  # sound to sound, with nobody who thinks or speaks
_DEPTH = 2  # folders below the given one: models/published/<component>/<name>


class Bundle:
    """What :func:`load` found. Each part is opened when it is first used, and stays open.

    Attributes:
        folders: the published folder of each component that is there.
    """

    def __init__(self, folders: dict[str, Path], float32: Container[str], threads: int) -> None:
        self.folders = folders
        self._float32, self._threads = float32, threads

    def check(self, needed: Collection[str]) -> None:
        """Check that every byte of these components is as published: see :func:`qwen_omni_onnx.checked.check_once`.

        Raises:
            UserError: one is not.
        """
        for name in needed:
            check_once(self._folder(name))

    @cached_property
    def listener(self) -> Listener:
        """Sound to embeddings."""
        return Listener(self._folder("frontend"), self._folder("encoder"), self._quantized("encoder"))

    @cached_property
    def thinker(self) -> thinker.Thinker:
        """Embeddings of text and sound to text, and to what the Talker says."""
        return thinker.open_published(self._folder("thinker"), **self._options("thinker"), stop_spinning=True)

    @cached_property
    def chat(self) -> Chat:
        """Conversations to tokens and back."""
        folder = self._folder("thinker")
        return Chat(folder, thinker.SpecialTokens.of(read_config(folder)).sound)

    @cached_property
    def talker(self) -> talker.Talker:
        """What the Thinker says to codes."""
        return talker.open_published(self._folder("talker"), **self._options("talker"), stop_spinning=True)

    @cached_property
    def token2wav(self) -> token2wav.Token2Wav:
        """Codes to sound."""
        return token2wav.open_published(self._folder("token2wav"), **self._options("token2wav"))

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
            UserError: there is none of that name; the message names those that there are.
        """
        voices = self.voices
        return pick(voices, min(voices) if name_or_folder is None else name_or_folder)

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
    folder: str | Path, *, needed: Collection[str] = CHAIN, float32: Container[str] = (), threads: int = 0
) -> Bundle:
    """Find published components under a folder, and check that every byte of those that are needed is as published.

    Bytes are read the first time, and after that of files whose size or time is another: see
    :func:`qwen_omni_onnx.checked.check_once`.

    Args:
        folder: that holds the published folders, side by side or in one for each component, as in ``models/published``.
        needed: components that must be there.
        float32: components to run with their float32 graph, where there is a quantized one, too.
        threads: of each session; 0: the number that was found best when the component was published, if it was sought
            and there are as many cores here, else ONNX Runtime's choice.

    Raises:
        UserError: a component is missing, is there twice, or is not as published; one line says which.
    """
    bundle = Bundle(find(folder, needed), float32, threads)
    bundle.check(needed)
    return bundle


def find(folder: str | Path, needed: Collection[str] = CHAIN) -> dict[str, Path]:
    """Return the published folder of each component under a folder; nothing but manifests is read.

    Args:
        folder: see :func:`load`.
        needed: components that must be there.

    Raises:
        UserError: one is missing, or a component is there twice.
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
