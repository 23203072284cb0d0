"""The stage graph and the repository around it."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from conftest import CHAIN, COMPOSED, ROOT
from ruamel.yaml import YAML

from components import component as described
from components import names
from omni.params import load

STAGES = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
PACKAGE = "qwen_omni_onnx"  # what users install, in src/
FOLDERS = ("pull", "export", "inputs", "reference", "calibrate", "quantize", "compose", "validate", "publish")
SHARED = ("components", "omni")
ALSO_RUNS = {"validate memory": ["quantize"]}  # in a process of its own, of what has weights of its own
OF_COMPONENTS, OF_COMPOSED = {"component": "${components}"}, {"component": "${composed}"}
OF_ALL = ("snapshot", "inputs", "report")  # stages that run once for all components
EACH = [stage for stage in STAGES if stage not in OF_ALL]


def _files(module: str) -> list[Path]:
    """Return the files of this repository that importing a module runs, itself last: packages around it come first.

    Of the installed package's own ``__init__``, which holds its public names, no stage depends.
    """
    root = ROOT / "src" if module.split(".")[0] == PACKAGE else ROOT
    parts = module.split(".")
    packages = [root.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts) + 1)]
    found = [*packages, root.joinpath(*parts).with_suffix(".py")]
    return [path for path in found if path.is_file() and path != ROOT / "src" / PACKAGE / "__init__.py"]


def _imports(node: ast.AST, component: str | None) -> Iterator[str]:
    """Yield the names of what a syntax tree imports.

    What stands under ``case "name":``, where ``name`` is a component, is imported for that component alone.
    """
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    elif isinstance(node, ast.match_case) and isinstance(node.pattern, ast.MatchValue):
        name = ast.literal_eval(node.pattern.value)
        if component is not None and name in names() and name != component:
            return
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, component)


def _imported(paths: Iterable[Path], component: str | None = None) -> set[Path]:
    """Files of this repository that files import, all the way down, and themselves: for one component, or any."""
    found, waiting = set(), [*paths]
    while waiting:
        here = waiting.pop()
        if here not in found:
            found.add(here)
            waiting += _next(here, component)
    return found


@functools.cache
def _next(path: Path, component: str | None) -> list[Path]:
    """Files of this repository that a file itself imports."""
    own = (*FOLDERS, *SHARED, PACKAGE)
    imported = (name for name in _imports(ast.parse(path.read_text()), component) if name.split(".")[0] in own)
    return [file for name in imported for file in _files(name)]


def _commands(stage: str) -> list[str]:
    commands = STAGES[stage]["cmd"]
    return commands if isinstance(commands, list) else [commands]


def _needed(stage: str, component: str) -> set[Path]:
    needed = set()
    for command in _commands(stage):
        module, words = re.findall(r"python -m (\S+)([^$]*)", command)[0]
        others = ALSO_RUNS.get(f"{module}{words}".strip(), []) if component in CHAIN else []
        for name in [module, *others]:
            needed |= _imported([*_files(name), *_files(f"{name}.__main__")], component)
    return needed


def _names(components: tuple[str, ...], composed: tuple[str, ...]) -> list[str]:
    """What DVC makes of the stages."""
    over = {"": None, str(OF_COMPONENTS): components, str(OF_COMPOSED): composed}
    found: list[str] = []
    for stage, block in STAGES.items():
        every = over[str(block.get("matrix", ""))]
        found += [stage] if every is None else [f"{stage}@{name}" for name in every]
    return found


def _runs(stage: str) -> list[tuple[str, str]]:
    return [(stage, name) for name in (COMPOSED if STAGES[stage].get("matrix") == OF_COMPOSED else CHAIN)]


@pytest.mark.parametrize(("stage", "component"), [run for stage in STAGES for run in _runs(stage)])
def test_a_stage_depends_on_every_module_that_it_imports(stage: str, component: str) -> None:
    dependencies = [ROOT / d.replace("${item.component}", component) for d in STAGES[stage]["deps"]]

    for path in _needed(stage, component):
        assert any(path == d or d in path.parents for d in dependencies), f"{stage} needs {path.relative_to(ROOT)}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_module_that_it_does_not_import(stage: str) -> None:
    needed = {component: _needed(stage, component) for _, component in _runs(stage)}

    for dependency in STAGES[stage]["deps"]:
        paths = {name: ROOT / dependency.replace("${item.component}", name) for name in needed}
        if all(path.suffix == ".py" or (path / "__init__.py").is_file() for path in paths.values()):
            imported = [any(p == file or p in file.parents for file in needed[name]) for name, p in paths.items()]
            assert any(imported), f"{stage} does not need {dependency}"
            assert all(imported) or "$" not in dependency, f"{stage} does not need {dependency}"


@pytest.mark.parametrize("stage", EACH)
def test_a_stage_depends_on_no_other_component(stage: str) -> None:
    """But for what is composed."""
    allowed = {"compose": ("components",), "release": ("components",)}
    inside = {single for name in COMPOSED for single in described(name).composed_of}

    for dependency in STAGES[stage]["deps"]:
        if dependency not in allowed.get(stage, ()):
            assert dependency not in ("components", "export", "models", "models/onnx", "models/composed", "reports")
        if STAGES[stage]["matrix"] == OF_COMPONENTS:
            assert not set(Path(dependency).parts) & set(CHAIN)
        else:
            assert set(Path(dependency).parts) & set(CHAIN) <= inside


def test_every_stage_but_the_first_depends_on_what_an_earlier_one_writes() -> None:
    written = {"models/snapshot", "models/inputs/${item.component}"}  # by the stages that run once for all of them

    for stage in EACH:
        block = STAGES[stage]
        assert block["matrix"] == (OF_COMPOSED if stage in ("compose", "release") else OF_COMPONENTS), stage
        read = {d for d in block["deps"] if d.startswith(("models/", "reports/"))}
        if block["matrix"] == OF_COMPOSED:
            read = {re.sub(rf"\b({'|'.join(CHAIN)})$", "${item.component}", d) for d in read}
        assert read, stage
        assert read <= written, stage
        written |= {
            next(iter(out)) if isinstance(out, dict) else out for out in [*block["outs"], *block.get("metrics", [])]
        }


def test_the_report_depends_on_what_the_stages_write_of_every_component() -> None:
    block = STAGES["report"]
    gated = {next(iter(out)) for out in STAGES["gate"]["outs"]}

    assert list(STAGES)[-1] == "report"
    assert "matrix" not in block
    assert gated == {f"reports/${{item.component}}/{name}" for name in ("gate.json", "sqnr.csv")}
    assert {f"reports/{component}" for component in (*CHAIN, *COMPOSED)} <= set(block["deps"])
    assert {"models/onnx", "models/quantized", "models/reference"} <= set(block["deps"])
    assert "reports" not in block["deps"]  # which would hold its own output


def test_what_is_composed_depends_on_both_graphs_of_every_component_inside() -> None:
    (name,) = COMPOSED
    graphs = {f"models/{kind}/{single}" for kind in ("onnx", "quantized") for single in described(name).composed_of}

    assert graphs <= set(STAGES["compose"]["deps"])
    assert not [d for d in STAGES["inputs"]["deps"] if Path("models/composed").is_relative_to(d)]  # a circle


def test_the_clips_and_the_sources_of_all_inputs_make_the_inputs_run_again() -> None:
    inputs = STAGES["inputs"]

    assert {"data/speech", "data/text"} <= set(inputs["deps"])
    assert inputs["params"] == ["components", *(f"{component}.inputs" for component in CHAIN)]


def test_the_components_are_those_that_there_are_each_after_what_feeds_it() -> None:
    params = load(ROOT / "params.yaml")

    assert sorted([*params.components, *params.composed]) == names() == sorted([*CHAIN, *COMPOSED])
    for position, name in enumerate(params.components):
        source = params.component(name).inputs.source
        assert source in (*params.components[:position], "synthetic") or (ROOT / source).is_dir()


@pytest.mark.parametrize("folder", [*FOLDERS, *SHARED, "src"])
def test_no_stage_imports_another_and_nothing_imports_upwards(folder: str) -> None:
    allowed = {"src": {"src"}, "omni": {"src", "omni"}}.get(folder, {"src", "omni", "components", folder})

    for path in (ROOT / folder).rglob("*.py"):
        for file in _imported([path]) - {path}:
            assert file.relative_to(ROOT).parts[0] in allowed, f"{path.relative_to(ROOT)} imports {file.name}"


def test_profiles_and_tools_import_no_measurement() -> None:
    for path in [*(ROOT / "profiles").rglob("*.py"), *(ROOT / "data").rglob("*.py")]:
        assert not {file.relative_to(ROOT).parts[0] for file in _imported([path])} & {"validate", "publish"}, path


@pytest.mark.parametrize("folder", ["validate", "publish", "calibrate", "quantize", "compose", "inputs"])
def test_only_export_and_reference_need_pytorch(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for file in _imported([path]):
            assert not re.search(r"^\s*(import|from) (torch|transformers)\b", file.read_text(), re.M), file


def test_the_lock_is_not_committed() -> None:
    """With it, a fresh clone would skip the measurements and publish another machine's latency as its own."""
    tracked = subprocess.run(["git", "ls-files", "dvc.lock"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert tracked.stdout == ""


def test_dvc_expands_the_matrix_over_components() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout.split() == _names(CHAIN, COMPOSED)


def test_nothing_is_composed_where_nothing_is_asked_for(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub(r"^composed: .*", "composed: []", text, flags=re.M))
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")

    done = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout.split() == _names(CHAIN, ())


@pytest.mark.parametrize(
    "command",
    [
        "pull",
        "export",
        "inputs",
        "reference",
        "calibrate",
        "quantize.compensate",
        "quantize",
        "compose",
        "validate",
        "validate parity",
        "publish",
    ],
)
def test_every_command_explains_itself_and_tells_a_mistake_in_one_line(command: str, tmp_path: Path) -> None:
    module, *words = command.split()
    run = [sys.executable, "-m", module, *words]

    helped = subprocess.run([*run, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    failed = subprocess.run(
        [*run, *(["gate"] if command == "validate" else []), "nonsense"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert helped.returncode == 0
    assert "Usage" in helped.stdout
    assert failed.returncode == 1
    assert failed.stderr == f"error: no component 'nonsense'; there are: {', '.join(sorted([*CHAIN, *COMPOSED]))}\n"


@pytest.mark.parametrize(
    "module",
    [
        "inputs.__main__",
        "calibrate.__main__",
        "quantize.__main__",
        "compose.__main__",
        "validate.latency",
        "benchmarks.projection",
    ],
)
def test_nothing_reports_usage(module: str, tmp_path: Path) -> None:
    """ONNX Runtime on Linux leaves a device id and a queue of events in the home folder when it does."""
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}

    subprocess.run(
        [sys.executable, "-c", f"import {module}, onnxruntime; onnxruntime.get_available_providers()"],
        cwd=ROOT, env={**environment, "HOME": str(tmp_path)}, check=True,
    )  # fmt: skip

    assert not list(tmp_path.rglob("*onnxruntime*"))


def test_constraints_pin_everything_exactly_and_torch_without_a_local_version() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]

    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in lines


def test_files_stay_short_enough_to_read() -> None:
    for folder in (*FOLDERS, *SHARED, "src"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 220
