"""The run-time's command line in this process: a mistake that a user can mend is raised."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from qwen_omni_onnx.__main__ import app
from qwen_omni_onnx.commands import speak as speak_command
from qwen_omni_onnx.commands.speak_request import SpeakRequest

__all__ = ["call", "open_nothing", "requested", "speak", "verify"]


def call(*arguments: str) -> None:
    """Run ``qwen-omni-onnx`` with these arguments."""
    app(list(arguments), standalone_mode=False)


def speak(arguments: list[str]) -> None:
    call("speak", *arguments)


def verify(arguments: list[str]) -> None:
    call("verify", *arguments)


def requested(arguments: list[str]) -> SpeakRequest:
    """Return what ``speak`` makes of these arguments, before it opens anything."""
    found: list[SpeakRequest] = []
    with (
        mock.patch.object(speak_command.sound_file, "require_sound_file"),
        mock.patch.object(speak_command, "_reply", found.append),
        mock.patch.object(speak_command, "_speak_directly", found.append),
    ):
        speak(arguments)
    return found[0]


def open_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be a mistake to hash a published folder, or to open a graph."""

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("hashed or opened")

    for name in (
        "qwen_omni_onnx.bundle.check_once",
        "qwen_omni_onnx.published.check_once",
        "onnxruntime.InferenceSession",
    ):
        monkeypatch.setattr(name, opened)
