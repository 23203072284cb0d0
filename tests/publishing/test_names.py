"""Names and licences follow the checkpoint: what a pull records, and what is published under it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_decoder as tiny
from conftest import EMBEDDING, NAME, ROOT, VOCABULARY, tiny_params, write_configs, write_params
from ruamel.yaml import YAML

from components import component
from components.projection import stem_of
from compose.graph import PROJECTION, stems
from omni.params import load
from pull import synthetic
from pull.folder import FolderSnapshot
from pull.origin import find_model, made_up_model
from pull.plan import config_of, plan
from pull.write import fetch
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.identity import CHECKPOINT_NAME, MODEL, Model
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.direct import open_projection
from reference.__main__ import record
from validate.measured import from_published

APACHE = (ROOT / "LICENSE").read_text()
ATTRIBUTION = "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Somebody. All Rights Reserved."
WRAPPED = ATTRIBUTION.replace(", ", ",\n")
RESEARCH = f"""Qwen RESEARCH LICENSE AGREEMENT

Qwen RESEARCH LICENSE AGREEMENT Release Date: September 19, 2024

3. c. You shall retain in all copies the following notices within a "Notice" text file: "{WRAPPED}"
"""
RESEARCH_CARD = "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LICENSE\n---\n# 3B\n"
COMMIT = "ae9e1690" * 5


def snapshot(folder: Path, card: str | bytes | None = None, licence: str | None = None) -> FolderSnapshot:
    folder.mkdir(parents=True)
    for name, content in (("README.md", card), ("LICENSE", licence)):
        if content is not None:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return FolderSnapshot(folder)


def cached(cache: Path, owner: str, name: str) -> Path:
    """Where huggingface_hub's cache keeps a snapshot."""
    return cache / f"models--{owner}--{name}" / "snapshots" / COMMIT


@pytest.mark.parametrize(
    ("name", "slug", "stem"),
    [
        ("Qwen2.5-Omni-7B", "qwen2.5-omni-7b", "qwen25_7b_audio"),
        ("Qwen2.5-Omni-3B", "qwen2.5-omni-3b", "qwen25_3b_audio"),
        ("Qwen2.5-Omni-7B-AWQ", "qwen2.5-omni-7b-awq", "qwen2_5_omni_7b_awq_audio"),
        ("My Omni v1.2", "my-omni-v1.2", "my_omni_v1_2_audio"),
        ("a--b..c_.-d", "a-b-c-d", "a_b_c_d_audio"),
        ("模型", "checkpoint", "checkpoint_audio"),
        ("..", "checkpoint", "checkpoint_audio"),
    ],
)
def test_files_and_folders_are_named_after_the_checkpoint(name: str, slug: str, stem: str) -> None:
    assert Model(name).slug == slug
    assert stem_of(name) == stem


@pytest.mark.parametrize(
    ("card", "licence", "found"),
    [
        (None, None, ("other", "unknown")),
        (None, APACHE, ("apache-2.0", None)),
        (None, APACHE.replace("http://", "https://"), ("apache-2.0", None)),
        (None, APACHE.replace("no-charge", "costly"), ("other", "unrecognized")),
        (None, f"{APACHE}\nNot for commercial use.\n", ("other", "unrecognized")),
        (None, "Apache License 2.0\n", ("other", "unrecognized")),
        (None, RESEARCH, ("other", "qwen-research")),
        ("---\nlicense: apache-2.0\n---\n", None, ("apache-2.0", None)),
        ("---\nlicense: other\nlicense_name: apache-2.0\n---\n", APACHE, ("apache-2.0", None)),  # so has the 7B's card
        (RESEARCH_CARD, RESEARCH, ("other", "qwen-research")),
        (RESEARCH_CARD, None, ("other", "qwen-research")),
        ("---\nlicense: qwen-research\n---\n", None, ("other", "qwen-research")),
        ("---\nlicense: other\n---\n", RESEARCH, ("other", "qwen-research")),
        ("---\nlicense: other\n---\n", None, ("other", "unknown")),
        ("---\nlicense: apache-2.0\n---\n", RESEARCH, ("other", "contradictory")),
        (RESEARCH_CARD, APACHE, ("other", "contradictory")),
        ("---\nlicense: mit\n---\n", "MIT License", ("mit", None)),
        ("---\nlicense: other\nlicense_name: My License\n---\n", None, ("other", "my-license")),
    ],
)
def test_a_licence_is_what_the_card_and_the_license_file_say(
    card: str | None, licence: str | None, found: tuple[str, str | None], tmp_path: Path
) -> None:
    model = find_model(snapshot(tmp_path / "tune", card, licence))

    assert (model.license, model.license_name) == found
    assert set(model.license_evidence) <= {"README.md", "LICENSE"}
    assert ("LICENSE" in model.license_evidence) == (licence is not None)


@pytest.mark.parametrize(
    "card",
    [
        "", "# no front matter", "---\nlicense: apache-2.0\n", "---\n- a list\n---\n", "---\n[\n---\n",
        "---\nlicense: [apache-2.0, mit]\n---\n", "---\nlicense: 2.0\n---\n", "---\nlicense: 2024-13-45\n---\n",
        "---\nlicense: \"apache-2.0\\nbase_model: x\"\n---\n", f"---\nlicense: {'a' * 65}\n---\n",
        "---\nlicense: !!python/object/apply:os.system [true]\n---\n", "---\na: &a [*a]\nlicense: *a\n---\n",
        f"---\n{'[' * 5000}\n---\n", f"---\nx: {'y' * 2**17}\nlicense: mit\n---\n", b"\xff\xfe---\nlicense: mit\n---\n",
        "---\nlicense: mit\nlicense: apache-2.0\n---\n", "---\nlicense: \"`rm`\"\n---\n",
    ],
)  # fmt: skip
def test_a_card_that_cannot_be_read_says_nothing_and_stops_nothing(card: str | bytes, tmp_path: Path) -> None:
    model = find_model(snapshot(tmp_path / "tune", card))

    assert (model.license, model.license_name, model.license_evidence) == ("other", "unknown", {})


def test_links_and_bases_are_taken_only_in_the_form_that_the_hub_has(tmp_path: Path) -> None:
    bases = "[Qwen/Qwen2.5-Omni-3B, 'a/b/c', 'x](http://evil)', 7, gpt2]"
    good = find_model(snapshot(tmp_path / "a", f"---\nlicense_link: https://a.b/c?d=e\nbase_model: {bases}\n---\n"))
    bad = find_model(snapshot(tmp_path / "b", '---\nlicense_link: "javascript:x"\nbase_model: {a: b}\n---\n'))
    outside = find_model(snapshot(tmp_path / "c", "---\nlicense_link: ../../LICENSE\nbase_model: a/b\n---\n"))

    assert (good.license_link, good.base_model) == ("https://a.b/c?d=e", ("Qwen/Qwen2.5-Omni-3B", "gpt2"))
    assert (bad.license_link, bad.base_model) == (None, ())
    assert (outside.license_link, outside.base_model) == (None, ("a/b",))


def test_a_snapshot_in_the_hubs_cache_knows_its_repository_and_commit(tmp_path: Path) -> None:
    place = cached(tmp_path, "Qwen", "Qwen2.5-Omni-3B")
    place.mkdir(parents=True)
    (tmp_path / "link").symlink_to(place)

    for folder in (place, tmp_path / "link"):
        model = find_model(FolderSnapshot(folder))
        assert (model.name, model.repository, model.revision) == ("Qwen2.5-Omni-3B", "Qwen/Qwen2.5-Omni-3B", COMMIT)


def test_a_folder_is_named_as_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my tune; *v2*"
    model = find_model(snapshot(folder))
    monkeypatch.chdir(folder)

    assert (model.name, model.repository, model.revision) == ("my tune- -v2-", None, None)
    assert find_model(FolderSnapshot(Path())).name == model.name


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("größe", "größe"),
        ("gro\u0308ße", "größe"),
        ("模型", "模型"),
        ("a\nb", "a-b"),
        ("\udcff", "-"),
        ("\u202eb", "-b"),
    ],
)
def test_a_folder_may_be_called_anything(tmp_path: Path, folder: str, name: str) -> None:
    assert find_model(snapshot(tmp_path / folder)).name == name


def test_a_record_comes_back_as_it_was_written(tmp_path: Path, message: Callable[..., str]) -> None:
    model = Model("a", "b/a", COMMIT, base_model=("c/d", "e"), license_evidence={"LICENSE": "unrecognized"})
    path = tmp_path / "source.json"

    assert Model.of(json.loads(json.dumps({MODEL: model.record()})), path) == model
    for damaged in ({}, {MODEL: None}, {MODEL: {"nam": "a"}}):
        assert message(Model.of, damaged, path) == f"{path}: does not say which model this is; pull the component again"


def test_made_up_weights_are_licensed_as_the_program_is() -> None:
    model = made_up_model("Qwen2.5-Omni-3B")

    assert (model.license, model.license_name, model.repository) == ("apache-2.0", None, None)


def test_a_projection_whose_checkpoint_has_no_name_is_told(tmp_path: Path, message: Callable[..., str]) -> None:
    write_configs(tmp_path / "configs")
    config = read_config(tmp_path / "configs")

    assert "does not name the checkpoint" in message(component(NAME).contracts, config)
    assert list(component(NAME).contracts({**config, CHECKPOINT_NAME: "Qwen2.5-Omni-3B"})) == ["qwen25_3b_audio"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny projection from a checkpoint that says it is the 3B, through every stage."""
    from calibrate.__main__ import calibrate
    from export.__main__ import export
    from inputs.__main__ import main as inputs
    from publish.__main__ import publish
    from quantize.__main__ import main as quantize
    from quantize.compensate import main as compensate
    from reference.__main__ import reference
    from validate.__main__ import run_contract, run_gate, run_latency, run_memory, run_parity

    folder = tmp_path_factory.mktemp("names")
    write_params(folder, tiny_params())
    place = cached(folder / "cache", "Qwen", "Qwen2.5-Omni-3B")
    snapshot(place, RESEARCH_CARD, RESEARCH)
    part, source = component(NAME), Path("models/source") / NAME
    configs = write_configs(folder / "configs")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        synthetic.write(part, 0, "full", Path("made") / NAME, configs)
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(Path("made") / NAME / name, place / name)
        local = FolderSnapshot(place)
        fetch(local, plan(local, part, config_of(local, part)), source)
        export(NAME)
        inputs([NAME])
        for stage in (reference, calibrate, compensate, quantize):
            stage(NAME)
        for step in (run_contract, run_parity, run_latency, run_memory, run_gate, publish):
            step([NAME])
    return folder


def _folder(published: Path) -> Path:
    (found,) = (published / "models/published" / NAME).iterdir()
    return found


def test_another_checkpoint_is_published_under_its_own_name(published: Path) -> None:
    folder = _folder(published)

    assert folder.name == f"qwen2.5-omni-3b-{NAME}-onnx"
    assert {path.name for path in (folder / "onnx").iterdir()} == {
        f"qwen25_3b_audio{kind}.onnx{data}" for kind in ("", "_int8") for data in ("", ".data")
    }
    manifest = artifact.check(folder)
    recorded = manifest["source"][MODEL]
    assert (recorded["repository"], recorded["revision"]) == ("Qwen/Qwen2.5-Omni-3B", COMMIT)
    assert stems(NAME, published / "models/onnx" / NAME) == {PROJECTION: "qwen25_3b_audio"}


def test_the_card_carries_the_research_licence(published: Path) -> None:
    folder = _folder(published)
    card = (folder / "README.md").read_text()
    head = YAML(typ="safe", pure=True).load(card.split("---")[1])

    assert (head["license"], head["license_name"], head["license_link"]) == ("other", "qwen-research", "LICENSE")
    assert head["base_model"] == ["Qwen/Qwen2.5-Omni-3B"]
    assert f"](https://huggingface.co/Qwen/Qwen2.5-Omni-3B/tree/{COMMIT})" in card
    assert "not for commercial use" in card
    assert "pache" not in card
    assert "7B" not in card
    assert "24 decoder layers" not in card
    assert (folder / "LICENSE").read_text() == RESEARCH
    assert (folder / "NOTICE").read_text().startswith(f"{ATTRIBUTION}\n")


def test_the_run_time_finds_the_graph_by_the_manifest(published: Path, message: Callable[..., str]) -> None:
    session = open_projection(_folder(published), quantized=True)

    (logits,) = session.run(None, {"hidden_states": np.zeros((1, 2, EMBEDDING), np.float32)})
    assert logits.shape == (1, 2, VOCABULARY)
    measured, _ = from_published(_folder(published))
    (graph,) = measured.graphs.values()
    assert [path.name for path in graph.files.values()] == ["qwen25_3b_audio.onnx", "qwen25_3b_audio_int8.onnx"]


@pytest.mark.parametrize("interface", [{}, {"../../evil": {}}, {"a": {}, "b": {}}])
def test_a_manifest_that_names_no_graph_of_the_folder_is_refused(
    interface: dict, published: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(_folder(published), folder)
    manifest = artifact.read_manifest(folder)
    artifact.write_json(folder / artifact.MANIFEST, {**manifest, "interface": interface})

    assert "does not name one graph" in message(open_projection, folder, quantized=True)


@pytest.mark.parametrize(
    ("card", "licence", "says"),
    [
        (None, None, "**No licence came with the checkpoint**"),
        (None, "Somebody's terms", "Licence: the checkpoint's own, [LICENSE](LICENSE); no model card names it."),
        (
            "---\nlicense: apache-2.0\n---\n",
            RESEARCH,
            "**The checkpoint contradicts itself about its licence** (`README",
        ),
        ("---\nlicense: mit\n---\n", None, "Licence: `mit`, as the checkpoint says (`README.md`: `mit`)."),
    ],
)
def test_a_fine_tunes_card_says_what_is_known_of_its_licence(
    card: str | None, licence: str | None, says: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from publish import provenance
    from publish.evidence import gather

    monkeypatch.chdir(published)
    model = find_model(snapshot(tmp_path / "my-tune", card, licence))
    evidence = gather(NAME, load())
    object.__setattr__(evidence, "model", model)
    object.__setattr__(evidence, "folders", {**evidence.folders, "onnx": tmp_path / "my-tune"})

    assert evidence.name == f"my-tune-{NAME}-onnx"
    assert says in provenance.made_from(evidence)
    head = YAML(typ="safe", pure=True).load(provenance.front_matter(evidence, ["onnx"]).strip("-"))
    assert (head["license"], head.get("license_name")) == (model.license, model.license_name)
    assert "base_model" not in head
    assert provenance.notice(evidence) is None


@pytest.mark.parametrize("section", [[16, 24, 24], [4, 4], [4, 4, -0.5], [9, -1, 0], "4,4,0", [True, 7, 0], {}])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rotary_axes_that_do_not_fill_half_a_head_are_told(section: Any, key: str, message: Callable[..., str]) -> None:
    config = tiny.config(**{key: {"mrope_section": section, "rope_type": "default"}})

    said = message(component("talker").contracts, config)

    assert said.startswith("config.json: talker_config: mrope_section is ")
    assert said.endswith("it must be three numbers that add up to 8, half the 16 channels of a head")


def test_the_3bs_rotary_axes_fit_its_heads() -> None:
    """14 heads of 64 in the Talker, 16 of 128 in the Thinker."""
    config = json.loads((ROOT / "pull/qwen2_5_omni_7b/config.json").read_text())
    axes = {"mrope_section": [16, 16, 0], "rope_type": "default"}
    talker = {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64}
    config["talker_config"] |= {**talker, "embedding_size": 2048, "intermediate_size": 4864, "rope_scaling": axes}
    text = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2, "num_hidden_layers": 36}
    config["thinker_config"]["text_config"] |= {**text, "intermediate_size": 11008, "vocab_size": 151936}

    assert tiny.PARTS["talker"].DECODER.sizes(config).head_dim == 64
    assert tiny.PARTS["thinker"].DECODER.sizes(config).head_dim == 128
    assert component("thinker").tensors(config)["thinker.lm_head.weight"].shape == (151936, 2048)


def test_a_thinker_whose_head_is_its_embedding_table_agrees_with_pytorch(tmp_path: Path) -> None:
    config = tiny.config(tie_word_embeddings=True)
    checkpoint = tiny.write_source("thinker", config, tmp_path)
    graph = tiny.write_graph("thinker", checkpoint, tmp_path / "onnx")
    recording = np.random.default_rng(0).standard_normal((7, 64), np.float32)

    assert "thinker.lm_head.weight" not in checkpoint.entries
    assert "talker.codec_head.weight" in component("talker").tensors(config)  # nothing is tied behind a projection
    cases, yardstick = record(component("thinker"), _thinker_params(), checkpoint, [recording])
    (case,) = cases.values()
    given = tiny.open_decoder(graph).begin(reserve=7).prefill(case["inputs_embeds"])  # logits of the last token
    assert sqnr_db(case["logits"][:, -1].ravel(), given.logits.ravel()) > 100
    table = checkpoint.read("thinker.model.embed_tokens.weight").astype(np.float32)
    assert sqnr_db((case["hidden_states"][:, -1] @ table.T).ravel(), given.logits.ravel()) > 100
    assert sqnr_db(case["hidden_states"], given.hidden) > 100
    assert 20 < sqnr_db(case["logits"], next(iter(yardstick.values()))["logits"]) < 100


def _thinker_params() -> Any:
    from omni.schema import ComponentParams

    block = dict(tiny_params()["thinker"], cases=[[7]])
    return ComponentParams.model_validate(block)
