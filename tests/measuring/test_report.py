"""The page: what it shows, that it needs no other file, and that it hides nothing that is red, missing or stale."""

from __future__ import annotations

import base64
import contextlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib
import numpy as np
import pytest
import soundfile
from conftest import CHAIN, COMPOSED, NAME
from ruamel.yaml import YAML

from omni.reports import GateReport
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.errors import UserError
from validate.__main__ import run_gate, run_report
from validate.report import figures, spoken, words
from validate.report.collect import Collected, Component, collect
from validate.report.page import render, write

HTML = "{http://www.w3.org/1999/xhtml}"
GATE = Path("reports") / NAME / "gate.json"
GRAPH = "qwen25_7b_audio"
HOSTILE = """<script>alert("1")</script> & '$x_1$' <img src="https://example.org/a.png">"""


@pytest.fixture(scope="module")
def chain_collected(gated_chain_once: Path) -> Iterator[Collected]:
    """What there is to say of the whole tiny chain; in its folder, to which nothing is written."""
    with contextlib.chdir(gated_chain_once):
        yield collect()


@pytest.fixture(scope="module")
def chain_page(chain_collected: Collected, gated_chain_once: Path) -> str:
    with contextlib.chdir(gated_chain_once):
        return render(chain_collected)


def _parsed(page: str) -> Element:
    """Parse a page; html5lib raises at the first thing that is not valid."""
    return html5lib.HTMLParser(strict=True).parse(page)


def _text(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def _rows(page: str) -> list[tuple[str, ...]]:
    return [tuple(_text(cell) for cell in row) for row in _parsed(page).iter(f"{HTML}tr")]


def _headline(page: str) -> tuple[str, str]:
    """Return the headline's colour and text."""
    (found,) = (e for e in _parsed(page).iter(f"{HTML}div") if e.get("class", "").startswith("headline"))
    return found.get("class").split()[1], _text(found)


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    content = artifact.read_json(path)
    change(content)
    artifact.write_json(path, content)


def _one(name: str) -> Component:
    return next(component for component in collect().components if component.name == name)


def test_the_page_is_valid_html_whose_links_lead_into_itself(chain_page: str) -> None:
    elements = list(_parsed(chain_page).iter())

    ids = [element.get("id") for element in elements if element.get("id")]
    links = [element.get("href") for element in elements if element.tag == f"{HTML}a"]
    assert len(ids) == len(set(ids))
    assert len(links) > len(CHAIN)
    assert all(link[0] == "#" and link[1:] in ids for link in links)


def test_the_page_asks_for_nothing_outside_itself(chain_page: str) -> None:
    for element in _parsed(chain_page).iter():
        assert str(element.tag).rpartition("}")[2] not in ("script", "iframe", "object", "embed", "base", "form")
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] in ("src", "href", "srcset", "data", "poster", "action"):
                assert value.startswith(("#", "data:")), (element.tag, name, value[:80])
            assert not re.search(r"url\((?!#)", value), (element.tag, name, value[:80])
            assert not name.startswith("on")
    (style,) = (element.text for element in _parsed(chain_page).iter(f"{HTML}style"))
    assert "@import" not in style
    assert "url(" not in style
    assert "default-src 'none'" in chain_page


def test_every_verdict_of_every_component_stands_there_with_value_and_limit(
    chain_page: str, gated_chain_once: Path
) -> None:
    rows = _rows(chain_page)
    count = 0

    for component in (*CHAIN, *COMPOSED):
        with contextlib.chdir(gated_chain_once):
            verdicts = GateReport.read(component).verdicts
        for verdict in verdicts:
            value = f"{verdict.value:.4g} {verdict.unit}".strip()
            limit = f"{'≥' if verdict.comparison == '>=' else '≤'} {verdict.limit:g}{verdict.note}"
            assert ("ok", verdict.of, verdict.label, value, limit) in rows
            count += 1
    assert sum(len(row) == 5 and row[0] == "ok" for row in rows) == count
    assert _headline(chain_page) == ("green", f"All gates green: {count} of {count}.")


def test_decoders_are_shown_without_their_first_tokens(chain_page: str, chain_collected: Collected) -> None:
    rows = _rows(chain_page)
    decoders = {"thinker", "talker"}

    for component in chain_collected.components:
        for check, kinds in component.checks.items():
            for kind, found in kinds.items():
                decibels = map(words.decibels, (found.without_first_median_db, found.without_first_p95_db))
                kl, top1 = words.significant(found.kl_without_first, 3), words.fixed(found.top1_without_first, 4)
                row = (component.name, check, kind, *decibels, kl, top1)
                assert (row in rows) == (component.name in decoders and check != "steps")


def test_every_component_says_that_its_weights_are_synthetic(chain_page: str) -> None:
    first_cells: dict[str, tuple[str, ...]] = {}
    for row in _rows(chain_page):
        if len(row) == 5:
            first_cells.setdefault(row[0], row)

    assert first_cells["frontend"][1] == "none: a transform"
    built = (*CHAIN[1:], *COMPOSED)
    for component in built:
        assert first_cells[component][1] == "synthetic, seed 0"
    assert first_cells["token2wav"][2] == "3"
    assert f"Synthetic weights: {', '.join(built)}." in _text(_parsed(chain_page))
    assert "With synthetic weights this is noise" in _text(_parsed(chain_page))


def test_the_players_hold_the_takes_of_a_golden_case(chain_page: str, gated_chain_once: Path) -> None:
    players = list(_parsed(chain_page).iter(f"{HTML}audio"))
    cases = dict(golden.read(gated_chain_once / "models/reference/token2wav" / golden.FILE))
    expected = cases["codes13"]["waveform"][0]

    takes = []
    for player in players:
        kind, _, content = player.get("src").partition(",")
        assert kind == "data:audio/wav;base64"
        with soundfile.SoundFile(io.BytesIO(base64.b64decode(content))) as file:
            assert (file.samplerate, file.subtype, file.channels) == (24_000, "PCM_16", 1)
            takes.append(file.read(dtype="float32"))
    assert [take.shape for take in takes] == [expected.shape] * 3
    np.testing.assert_allclose(takes[0], expected, atol=2**-15)
    assert not np.array_equal(takes[0], takes[2])


def test_what_is_spoken_is_as_far_from_pytorch_as_parity_found(chain_page: str, gated_chain_once: Path) -> None:
    report = artifact.read_json(gated_chain_once / "reports/token2wav/parity.json")["checks"]["waveform"]
    text = _text(_parsed(chain_page))

    for name, kind in (("float32", "float32"), ("INT8", "quantized")):
        (case,) = (case for case in report[kind]["cases"] if case["case"] == "codes13")
        assert f"{name}: {case['sqnr_db']:.1f} dB, STFT distance {case['stft']:.4f}" in text


def test_a_long_take_is_cut_and_its_distances_are_of_all_of_it(
    gated_chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoken, "_LONGEST", 0.01)
    whole = artifact.read_json(Path("reports/token2wav/parity.json"))["checks"]["waveform"]["quantized"]["cases"]

    heard = spoken.speak(collect().built["token2wav"], threads=1)

    assert [len(take.waveform) for take in heard.takes] == [240] * 3
    assert heard.takes[2].sqnr_db == pytest.approx(
        next(case["sqnr_db"] for case in whole if case["case"] == "codes13"), rel=1e-6
    )


def test_a_figure_stands_for_each_check_graph_and_take_in_the_pages_own_colours(
    chain_page: str, chain_collected: Collected
) -> None:
    drawn = [e for e in _parsed(chain_page).iter() if str(e.tag).endswith("}svg")]
    checks = sum(len(one.checks) for one in chain_collected.components)
    graphs = sum(len(one.latency) for one in chain_collected.components)

    assert (checks, graphs) == (15, 9)
    assert len(drawn) == checks + graphs + 3
    assert len({figure.get("aria-label") for figure in drawn}) == len(drawn)
    assert "#0a00" not in chain_page
    assert chain_page.count("original note: 0.07 ms each + 1.5") == 1


def test_the_same_reports_give_the_same_bytes(
    chain_page: str, chain_collected: Collected, gated_chain_once: Path
) -> None:
    with contextlib.chdir(gated_chain_once):
        assert render(chain_collected) == chain_page


def test_a_red_gate_shows_red_with_the_value_that_missed(gated: Path) -> None:
    table = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text())
    table[NAME]["gates"]["checks"]["audio_logits"]["quantized_sqnr_db"] = 99
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(table, file)
    with pytest.raises(UserError):
        run_gate([NAME])

    page = render(collect())

    value = next(v["value"] for v in artifact.read_json(GATE)["verdicts"] if v["limit"] == 99)
    colour, text = _headline(page)
    assert colour == "red"
    assert re.match(rf"1 of \d+ gates missed, of {NAME}\.", text)
    assert ("MISS", "audio_logits quantized", "SQNR, worst case", f"{value:.4g} dB", "≥ 99") in _rows(page)
    assert 'class="pill red">red' in page


def test_a_value_that_is_no_number_and_a_gate_report_that_lies_are_red(gated: Path) -> None:
    def spoil(gate: dict) -> None:
        gate["verdicts"][0]["value"] = None  # NaN, as it was written
        gate["wrong"] = ["contract: float32: interface: is another"]
        gate["passed"] = True

    _edit(GATE, spoil)

    page = render(collect())

    assert _headline(page)[0] == "red"
    assert any(row[3:4] == ("no number",) and row[0] == "MISS" for row in _rows(page))
    assert ("MISS", "contract: float32: interface: is another") in _rows(page)


@pytest.mark.parametrize("measurement", ["contract", "parity", "latency", "memory", "gate"])
def test_a_missing_report_is_told_with_the_command_that_makes_it(measurement: str, gated: Path) -> None:
    path = Path("reports") / NAME / f"{measurement}.json"
    path.unlink()

    found = _one(NAME)

    said = f"{path}: missing; run python -m validate {measurement} {NAME}, or dvc repro"
    assert found.troubles == {measurement: said}
    assert found.status == "unproven"


def test_what_is_in_doubt_stands_on_the_page(gated: Path) -> None:
    (Path("reports") / NAME / "parity.json").unlink()

    page = render(collect())

    assert _headline(page)[0] == "unproven"
    assert f"Reports are missing, or not about what is here now: frontend, encoder, {NAME}" in _headline(page)[1]
    assert f"reports/{NAME}/parity.json: missing; run python -m validate parity {NAME}" in page
    assert "All gates green" not in page
    assert "token2wav is not built here; run dvc repro" in page


def test_reports_of_other_artifacts_are_marked(gated: Path) -> None:
    _edit(GATE, lambda report: report["artifacts"].update(onnx="0" * 64))

    found = _one(NAME)

    assert found.troubles == {"gate": f"{GATE}: made from other artifacts than are here now; run dvc repro"}
    assert found.status == "unproven"
    assert found.total == found.green > 0


def test_a_gate_that_judged_by_other_limits_is_marked(gated: Path) -> None:
    _edit(GATE, lambda report: report["limits"].update(quantized_sqnr_db=1.0))

    assert "judged by other limits than stand in params.yaml" in _one(NAME).troubles["gate"]


def test_changed_limits_are_marked_of_every_component(gated_chain: Path) -> None:
    for name in (*CHAIN, *COMPOSED):
        _edit(Path("reports") / name / "gate.json", lambda report: report["limits"].update(build_memory_mb=1.0))

    found = {component.name: component.troubles.get("gate", "") for component in collect().components}

    assert set(found) == {*CHAIN, *COMPOSED}
    for name, said in found.items():
        assert "judged by other limits than stand in params.yaml" in said, name


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"component": "projection", "artifacts": {}, "passed": true, "verdicts": 3, "wrong": [], "limits": {}}',
        '{"component": "projection", "artifacts": {}, "passed": true, "verdicts": [{}], "wrong": [], "limits": {}}',
        '{"component": "projection", "artifacts": {}, "passed": true, "verdicts": [], "wrong": 5, "limits": {}}',
    ],
)
def test_a_report_that_cannot_be_read_is_told(content: str, gated: Path) -> None:
    GATE.write_text(content)

    found = _one(NAME)

    assert found.gate is None
    assert str(GATE) in found.troubles["gate"]
    assert "\n" not in found.troubles["gate"]
    assert found.status == "unproven"


def test_a_value_of_another_type_in_a_report_is_told(gated: Path) -> None:
    _edit(GATE, lambda report: report["verdicts"][0].update(value="much"))
    _edit(
        Path("reports") / NAME / "latency.json",
        lambda report: report["graphs"][GRAPH]["lengths"][0].update(float32_ms=None),
    )

    found = _one(NAME)

    assert "is not what this version writes" in found.troubles["gate"]
    assert "is not what this version writes" in found.troubles["latency"]
    assert (found.gate, found.latency) == (None, {})


def test_a_component_of_which_there_are_only_reports_shows_up_by_itself(gated: Path) -> None:
    shutil.copytree(GATE.parent, Path("reports/audio_core"))

    page = render(collect())

    assert _one("audio_core").status == "unproven"
    assert "gates-audio-core" in page
    assert "reports/audio_core/gate.json: made from artifacts that are not here" in page


def test_hostile_strings_are_text(gated: Path) -> None:
    reports = Path("reports") / NAME
    _edit(reports / "latency.json", lambda report: report["graphs"][GRAPH]["machine"].update(processor=HOSTILE))
    _edit(reports / "latency.json", lambda report: report["graphs"][GRAPH].update(axis=HOSTILE))
    _edit(reports / "contract.json", lambda report: report["checks"][0].update(detail=HOSTILE))
    _edit(
        reports / "parity.json",
        lambda report: report["checks"]["audio_logits"]["float32"]["cases"][0].update(case=HOSTILE),
    )
    _edit(GATE, lambda report: report["verdicts"][0].update(label=HOSTILE, note=HOSTILE))
    shutil.copytree(reports, Path("reports") / "<script>alert(1)")

    page = render(collect())

    tags = {str(element.tag).rpartition("}")[2] for element in _parsed(page).iter()}
    assert not {"script", "img"} & tags
    assert _text(_parsed(page)).count(HOSTILE) >= 7  # in a figure too
    assert "<script>alert(1)" in _text(_parsed(page))


def test_the_command_writes_the_page_where_it_is_told(gated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("made").mkdir()

    run_report(Path("made/page.html"))

    assert Path("made/page.html").read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in Path("made").iterdir()] == ["page.html"]
    assert capsys.readouterr().out.startswith("made/page.html  (0.")


def test_a_page_that_fails_leaves_the_old_one(gated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path("reports/report.html")
    out.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))

    with pytest.raises(OSError, match="killed"):
        write(out)

    assert out.read_text() == "old"
    assert not list(out.parent.glob(".*.writing"))


def test_nothing_built_is_told_and_writes_nothing(gated: Path, message: Callable[..., str]) -> None:
    shutil.rmtree("models")

    assert message(write, Path("reports/report.html")) == "nothing is built under models/; run dvc repro, or make repro"
    assert not list(Path("reports").glob("*.html"))


def test_a_graph_that_cannot_speak_leaves_the_page_without_sound(
    gated_chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path("models/quantized/token2wav") / "bigvgan_int8.onnx").write_bytes(b"cut")
    monkeypatch.setattr("validate.report.figures.sqnr", lambda *_: "")
    monkeypatch.setattr("validate.report.figures.latency", lambda *_: "")

    page = render(collect())

    assert re.search(r"No sound: .*bigvgan_int8\.onnx", page)
    assert "<audio" not in page


def test_sizes_stand_beside_the_notes(chain_collected: Collected) -> None:
    by_name = {component.name: component for component in chain_collected.components}

    rows = {what: (theirs, ours) for what, theirs, ours in words.beside_note(chain_collected.components)}

    (projection,) = by_name[NAME].graphs
    assert rows["projection, float32, external data"] == ("41.13 MiB", f"{projection.data_bytes / 2**20:,.2f} MiB")
    assert rows["projection, INT8"] == ("about 10 MB", f"{projection.quantized_nbytes / 1e6:,.2f} MB")
    theirs, ours = rows["audio core, INT8"]
    assert theirs.startswith("1,088.9 MB")
    assert ours.startswith(f"{by_name['audio_core'].quantized_nbytes / 1e6:,.2f} MB: one file")

    total = sum(by_name[name].quantized_nbytes for name in ("encoder", "token2wav"))
    parts = [component for component in chain_collected.components if component.name != "audio_core"]
    alone = {what: ours for what, _, ours in words.beside_note(parts)}
    assert alone["audio core, INT8"] == (
        f"{total / 1e6:,.2f} MB: encoder and token2wav together; as built here: encoder 2 layers, token2wav 3 layers"
    )

    (graph,) = by_name[NAME].graphs
    other = replace(by_name[NAME], graphs=(replace(graph, stem="qwen25_3b_audio"),))
    assert words.beside_note([other]) == []


def test_a_tone_is_loudest_where_it_belongs() -> None:
    rate = 24_000
    tone = np.sin(2 * np.pi * 3_000 * np.arange(rate // 10) / rate).astype(np.float32)

    decibels = figures.magnitudes_db(tone)

    assert decibels.argmax(0).tolist() == [3_000 * 512 // rate] * decibels.shape[1]
    assert decibels.max() == 0
    assert figures.magnitudes_db(tone[:100]).shape == (257, 1)
    assert np.all(figures.magnitudes_db(np.zeros(1000, np.float32)) == -80)
