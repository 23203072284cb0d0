"""Every attack holds on small published folders, and the page on attacks tells each."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from attacks.__main__ import ATTEMPTS, attempt, main
from attacks.attempt import Attempt, Outcome, Target, verify_folder
from qwen_omni_onnx.common.errors import UserError

# Half a minute and more: every value wherever a manifest is read, and what begins a process for each of many trials.
SLOW = {"types", "manifest-mutations", "damaged-graphs", "external-data", "templates", "tokenizers", "greedy-graphs"}


@pytest.mark.parametrize("name", [name for name in ATTEMPTS if name not in SLOW])
def test_an_attack_holds(gated_chain_once: Path, name: str) -> None:
    gave_way, _ = attempt(ATTEMPTS[name], gated_chain_once / "models/published", mutations=30)

    assert not gave_way, "\n".join(gave_way)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mutations", *sorted(SLOW)])
def test_an_attack_of_many_trials_holds(gated_chain_once: Path, name: str) -> None:
    gave_way, _ = attempt(ATTEMPTS[name], gated_chain_once / "models/published", mutations=1_000)

    assert not gave_way, "\n".join(gave_way)


def test_the_page_tells_every_attempt_and_what_happens() -> None:
    page = (ROOT / "attacks/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| (.+) \| (.+) \|$", page, re.M)

    assert rows == [(found.name, found.tried, found.happens) for found in ATTEMPTS.values()]


def test_what_gives_way_is_told_and_ends_the_command_with_an_error(
    gated_chain_once: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ATTEMPTS, "weak", Attempt("weak", "", "", lambda target: ["a trial: accepted"]))
    monkeypatch.setitem(ATTEMPTS, "strong", Attempt("strong", "", "", lambda target: []))

    with pytest.raises(UserError, match=r"^gave way: weak$"):
        main(["strong", "weak"], gated_chain_once / "models/published", 1)
    printed = capsys.readouterr().out
    assert re.search(r"strong\W+held", printed)
    assert re.search(r"weak\W+gave way\W+a trial: accepted", printed)


def test_an_unknown_attempt_and_a_folder_that_is_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no attempt 'x'; there are: mutations, "):
        main(["x"], tmp_path, 1)
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="nothing published there"):
            main(["names"], folder, 1)


def test_an_attack_that_an_honest_folder_does_not_survive_would_be_no_test(
    gated_chain_once: Path, tmp_path: Path
) -> None:
    target = Target(gated_chain_once / "models/published", tmp_path, 1, verify_folder)

    assert target.try_folder(target.copy("projection")) == Outcome("accepted")
    target.end()


def accept(folder: str, seconds: float) -> None:
    """As a check that looks at nothing."""


def fail(folder: str, seconds: float) -> None:
    np.zeros(1)[1]


@pytest.mark.parametrize("accepts", [accept, fail])
def test_a_check_that_accepts_or_fails_gives_way(gated_chain_once: Path, tmp_path: Path, accepts: object) -> None:
    target = Target(gated_chain_once / "models/published", tmp_path, 3, accepts)  # type: ignore[arg-type]

    assert len(ATTEMPTS["mutations"].run(target)) == 3
    assert target.notes == ["3 mutations, 3 accepted"] or accepts is fail
    target.end()
