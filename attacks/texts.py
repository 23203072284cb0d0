"""Attempts by way of texts: chat templates, tokenizers, and names that are printed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.attempt import Attempt, Target, reseal
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.confined import Limits
from qwen_omni_onnx.common.console import without_commands
from qwen_omni_onnx.common.text import CHAT_TEMPLATE, TOKENIZER
from qwen_omni_onnx.text.chat import conversation
from qwen_omni_onnx.text.confined_chat import ConfinedChat

__all__ = ["ATTEMPTS", "lay_out"]

_LIMITS = Limits(seconds=4, nbytes=1 << 30)  # for what takes milliseconds
_COMMANDS = "\x1b[2J\x1b]52;c;cm0gLXJm\x07\x9b31m\r  ok \n<b onmouseover=alert(1)>"
_LOOPING = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 9 ** 99999999999 }}",
    "{{ 'a'.ljust(9999999999) }}",
    "{{ '%09999999999d' % 1 }}",
    "{{ 'a' | center(9999999999) }}",
    "{{ 'aaaaaaaa'.replace('', 'a' * 99999).replace('', 'a' * 99999) | length }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ " + "(" * 5_000,
)
_ESCAPING = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ messages.__class__.mro() }}",
    "{% include '/etc/passwd' %}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ namespace(__class__=1) }}",
    "{{ ('{0.__class__}').format(1) }}{{ raise_exception('end') }}",
)


def lay_out(folder: str) -> None:
    """Lay out a question by the chat template and the tokenizer of a published Thinker.

    Raises:
        UserError: They cannot, or meet a limit.
    """
    ConfinedChat(Path(folder), 0, _LIMITS).ids(conversation("hello", 0))


def _templates(target: Target) -> list[str]:
    """Let chat templates loop, or fill the memory."""
    return _laid_out(target, CHAT_TEMPLATE, _LOOPING)


def _sandbox(target: Target) -> list[str]:
    """Let chat templates reach for what is outside their sandbox."""
    return _laid_out(target, CHAT_TEMPLATE, _ESCAPING)


def _tokenizers(target: Target) -> list[str]:
    """Let tokenizers pad to billions, multiply a text, or panic."""
    table = json.loads((target.copy("thinker") / TOKENIZER).read_text(encoding="utf-8"))
    padding = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x", "pad_to_multiple_of": None}
    hundredfold = {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 100}
    changes: tuple[dict[str, Any], ...] = (
        {"padding": {**padding, "strategy": {"Fixed": 4_000_000_000}}},
        {"padding": {**padding, "strategy": "BatchLongest", "pad_to_multiple_of": 4_000_000_000}},
        {"normalizer": {"type": "Sequence", "normalizers": [hundredfold] * 6}},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 10}},  # panics
        {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}},
        {"model": {**table["model"], "merges": [["a", "b"]]}},
        {"added_tokens": 3},
    )
    made = [json.dumps({**table, **change}) for change in changes]
    return _laid_out(target, TOKENIZER, (*made, "[" * 100_000, "", "3", '{"version": "1.0"}'))


def _laid_out(target: Target, name: str, contents: tuple[str, ...]) -> list[str]:
    folder, gave_way = target.copy("thinker"), []
    for content in contents:
        (folder / name).write_text(content, encoding="utf-8")
        outcome = target.try_work(lay_out, str(folder))
        if outcome.kind != "refused":
            gave_way.append(f"{content[:60]}: {outcome.kind}: {outcome.said}")
    return gave_way


def _terminal(target: Target) -> list[str]:
    """Let names and texts of a folder hold what a terminal, or a page, would obey."""
    gave_way = []

    def in_gates(folder: Path) -> None:
        gates = artifact.read_manifest(folder)["gates"]
        reseal(folder, {"gates": [{**gate, "label": _COMMANDS, "unit": _COMMANDS} for gate in gates]})

    def in_component(folder: Path) -> None:
        reseal(folder, {"component": _COMMANDS})

    def in_file(folder: Path) -> None:
        (folder / "onnx" / "\x1b[2J\r").write_text("")

    changes: tuple[Callable[[Path], None], ...] = (in_gates, in_component, in_file)
    for change in changes:
        folder = target.copy("projection")
        change(folder)
        printed = _printed(folder)
        obeyed = without_commands(printed) != printed
        if obeyed or any(line.strip() == "ok" for line in printed.splitlines()):
            gave_way.append(f"{change.__name__}: {printed[:200]!r}")
    if "\x1b" in without_commands(_COMMANDS) or "\r" in without_commands(_COMMANDS):  # as of tokens of a reply
        gave_way.append("tokens")
    return gave_way


def _printed(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "qwen_omni_onnx", "verify", str(folder)], capture_output=True, check=False
    )
    return (done.stdout + done.stderr).decode("utf-8", "replace")


ATTEMPTS = (
    Attempt(
        "templates",
        "chat templates with nested loops, strings that double, powers of powers, macros without end",
        "refused: templates are laid out in a process of its own, with limits on time and memory",
        _templates,
    ),
    Attempt(
        "sandbox",
        "chat templates that reach for classes, globals, files",
        "refused by Jinja2's sandbox",
        _sandbox,
    ),
    Attempt(
        "tokenizers",
        "tokenizers that pad to 4 billion tokens, multiply a text by 10^12, panic, or are none",
        "refused: tokenizers run in a process of its own, too",
        _tokenizers,
    ),
    Attempt(
        "terminal",
        "escape sequences, carriage returns and HTML in limits, component and file names, and tokens",
        "printed as escapes",
        _terminal,
    ),
)
