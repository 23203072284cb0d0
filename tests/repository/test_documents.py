"""What the documents tell a reader to run runs, or is at least what the command takes.

Every fenced block says what it is: ``python`` and ``console`` run here, page by page, in a folder where the published
models lie as after ``make repro``; commands elsewhere are parsed by their own parsers; ``yaml`` is laid over the
parameters; ``text`` is none of these.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import dvc.cli
import pytest
from conftest import ROOT, write_params
from fenced import blocks
from parsers import parse_make, parse_module
from ruamel.yaml import YAML

from omni.params import load
from profiles.__main__ import laid_over

DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("data/*/README.md"),
        *(ROOT / name / "README.md" for name in ("attacks", "models")),
    ]
)
LANGUAGES = {"python", "console", "sh", "yaml", "text"}
OTHERS = (
    "arecord",
    "cd",
    "git",
    "hf",
    "kubectl",
    "mkdir",
    "model_signing",
    "pip",
    "ray",
    "rm",
    "sha256sum",
    "source",
)  # programs that are not this project's
_COMMAND = re.compile(rf"(?:python -m|qwen-omni-onnx|make|dvc|{'|'.join(OTHERS)}) \S")


def prompted(block: str) -> list[str]:
    """Commands of a session on a console; what they print is left out."""
    return re.findall(r"^\$ (.+)$", block, re.M)


def inline(document: Path) -> list[str]:
    """Commands in running text, in tables, and in indented lines."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S).replace(r"\|", "|")
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return [span for span in [*spans, *re.findall(r"^ {4}(.+)$", text, re.M)] if _COMMAND.match(span)]


def commands(document: Path) -> list[list[str]]:
    """Words of every command, without comments; of alternatives (``a|b``) each."""
    found = inline(document)
    for language, block in blocks(document):
        found += prompted(block) if language == "console" else block.splitlines() if language == "sh" else []
    parts = [part for line in found for part in re.split(r"&&|;", re.sub(r"(^|\s)#.*", "", line))]
    words = [shlex.split(part) for part in parts]
    return [list(one) for each in words for one in itertools.product(*(word.split("|") for word in each)) if one]


COMMANDS = sorted({" ".join(map(shlex.quote, words)) for document in DOCUMENTS for words in commands(document)})
_ON = ROOT / "docs/api.md"  # whose examples go on from one to the next, and print what the page shows: test_api.py
RUN = [
    document
    for document in DOCUMENTS
    if document != _ON and {"python", "console"} & {language for language, _ in blocks(document)}
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_says_what_it_is(document: Path) -> None:
    text = document.read_text(encoding="utf-8")

    assert {language for language, _ in blocks(document)} <= LANGUAGES
    assert text.count("```") == 2 * len(blocks(document))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")

    for name in re.findall(r"`([\w.]+(?:/[\w.]+)+\.py)`", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("document", RUN, ids=lambda path: path.name)
def test_the_code_of_a_page_runs_as_printed(document: Path, gated_chain: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "data/speech/held_out", "data/speech/held_out", dirs_exist_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    for language, block in blocks(document):
        run = [[sys.executable, "-c", block]] if language == "python" else []
        if language == "console":
            run = [["bash", "-c", line] for line in prompted(block) if line.startswith("python -m qwen_omni_onnx")]
        for command in run:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, f"{command[-1]}\n{done.stderr}"


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_its_parser_takes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = shlex.split(command)
    if program == "qwen-omni-onnx":
        parse_module("qwen_omni_onnx", arguments, monkeypatch)
    elif program == "python" and arguments[0] == "-m":
        parse_module(arguments[1], arguments[2:], monkeypatch)
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    elif program == "make":
        parse_make(arguments)
    elif program == "dvc":
        dvc.cli.parse_args(arguments)
    else:
        assert program in OTHERS


def test_parameters_that_a_page_gives_are_taken(tmp_path: Path) -> None:
    yaml = YAML(typ="safe", pure=True)
    usual = yaml.load((ROOT / "params.yaml").read_text())
    given = [block for document in DOCUMENTS for language, block in blocks(document) if language == "yaml"]

    assert given
    for block in given:
        write_params(tmp_path, laid_over(usual, yaml.load(block)))
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
        assert ":" in target or (document.parent / target).exists(), target
