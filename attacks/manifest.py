"""Attempts by way of the manifest and of the files that it names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attacks.attempt import Attempt, Target, mutated, reseal, try_mutations
from qwen_omni_onnx.common import artifact

__all__ = ["ATTEMPTS"]

_SMALL = "projection"  # the component whose folder is the smallest
_MANIFESTS = 20  # mutations of the manifest: one for so many of other files, as each may run the graphs
_NAMES = (
    "../outside", "/etc/hostname", "onnx/../../outside", "onnx\\outside", "C:outside", "", ".", "onnx//graph",
    "manifest.json", "a\nb", "\x1b[2J", "\u202egnp", "a\0b", "x" * 5000,
)  # fmt: skip
_STEMS = ("../../outside", "/outside", "..", "", "\x1b[2J", "a\nb", "x" * 5000, "no_such_graph")
_READ = (  # what readers read, as paths of keys
    ("files",), ("kind",), ("component",), ("interface",), ("quantization",), ("gates",), ("interface", 0),
    ("interface", 0, "inputs"), ("interface", 0, "outputs"), ("interface", 0, "inputs", 0),
    ("interface", 0, "inputs", 0, "name"), ("interface", 0, "inputs", 0, "dtype"),
    ("interface", 0, "inputs", 0, "shape"), ("gates", 0), ("gates", 0, "kind"), ("gates", 0, "limit"),
    ("gates", 0, "comparison"), ("files", 0), ("files", 0, "bytes"), ("files", 0, "sha256"),
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "\x1b]0;x\x07",
    [],
    {},
    [[]],
    {"a": {}},
)


def _mutations(target: Target) -> list[str]:
    """Change random bytes of files other than the manifest."""
    folder, random = target.copy(_SMALL), target.random("mutations")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != artifact.MANIFEST)
    return try_mutations(target, folder, lambda _: random.choice(files), random)


def _manifest_mutations(target: Target) -> list[str]:
    """Change random bytes of the manifest; what is accepted, nothing but a signature can tell."""
    folder, random = target.copy(_SMALL), target.random("manifest")
    path, gave_way, accepted = folder / artifact.MANIFEST, [], 0
    before, count = path.read_bytes(), max(1, target.mutations // _MANIFESTS)
    for number in range(count):
        path.write_bytes(mutated(before, random))
        outcome = target.try_folder(folder)
        accepted += outcome.kind == "accepted"
        if outcome.kind == "failed":
            gave_way.append(f"{number}: {outcome.said}")
    target.notes.append(f"{count} mutations, {accepted} accepted: these need a signature")
    return gave_way


def _forged(target: Target) -> list[str]:
    """Change weights, or take limits out, and recompute all hashes."""
    gave_way = []
    for name, forge in _forgeries():
        folder = target.copy(_SMALL)
        forge(folder)
        outcome = target.try_folder(folder)
        if outcome.kind != "refused":
            gave_way.append(f"{name}: {outcome.kind}: {outcome.said}")
    return gave_way


def _forgeries() -> Iterator[tuple[str, Callable[[Path], None]]]:
    def weights(folder: Path) -> None:
        for path in folder.glob("onnx/*.data"):
            content = bytearray(path.read_bytes())
            content[: len(content) // 2] = bytes(len(content) // 2)
            path.write_bytes(content)
        reseal(folder)

    def swapped(folder: Path) -> None:
        first, second = sorted(folder.glob("onnx/*.onnx"))[:2]
        shutil.copy(second, first)
        reseal(folder)

    def without_gates(folder: Path) -> None:
        reseal(folder, {"gates": []})

    def without_quantized_gates(folder: Path) -> None:
        gates = artifact.read_manifest(folder)["gates"]
        reseal(folder, {"gates": [gate for gate in gates if gate["kind"] != "quantized"]})

    def without_graphs(folder: Path) -> None:
        reseal(folder, {"interface": {}, "quantization": {}})

    def without_cases(folder: Path) -> None:
        (folder / "golden/golden.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        reseal(folder)

    def of_another_component(folder: Path) -> None:
        reseal(folder, {"component": "thinker"})

    forgeries = (
        weights, swapped, without_gates, without_quantized_gates, without_graphs, without_cases, of_another_component
    )  # fmt: skip
    yield from ((forge.__name__, forge) for forge in forgeries)


def _names(target: Target) -> list[str]:
    """Name files and graphs that lie elsewhere, or that a terminal would obey."""
    gave_way, folder = [], target.copy(_SMALL)
    manifest = artifact.read_manifest(folder)
    for graph in folder.glob("onnx/*"):  # a graph that could be opened, where `../../outside` leads
        shutil.copy(graph, folder.parent / f"outside{''.join(graph.suffixes)}")
    entry = next(iter(manifest["files"].values()))
    (interface,) = manifest["interface"].values()
    changed = [{"files": {**manifest["files"], name: entry}} for name in _NAMES]
    changed += [{"interface": {stem: interface}, "quantization": {}} for stem in _STEMS]
    for changes in changed:
        _write(folder, {**manifest, **changes})
        outcome = target.try_folder(folder)
        if outcome.kind != "refused":
            gave_way.append(f"{next(iter(changes.values()))!r:.80}: {outcome.kind}: {outcome.said}")
    return gave_way


def _types(target: Target) -> list[str]:
    """Put values of another type wherever the manifest is read."""
    gave_way, folder = [], target.copy(_SMALL)
    manifest = artifact.read_manifest(folder)
    for path in _READ:
        for value in _VALUES:
            _write(folder, _with(manifest, path, value))
            outcome = target.try_folder(folder)
            if outcome.kind == "failed":
                gave_way.append(f"{path}: {value!r:.40}: {outcome.said}")
    for text in ("[" * 100_000, '{"files":' * 100_000, "9" * 100_000, '"\\ud800"', "\ufeff{}", ""):
        (folder / artifact.MANIFEST).write_text(text, encoding="utf-8")
        if target.try_folder(folder).kind != "refused":
            gave_way.append(f"{text[:20]!r}")
    return gave_way


def _special_files(target: Target) -> list[str]:
    """Put a link, a pipe or a folder in place of a file, or one beside the files."""
    gave_way = []
    for name, put in (
        ("link", lambda path: os.symlink("/etc/hostname", path)),
        ("link to the same bytes", lambda path: os.symlink(path.with_name("kept"), path)),
        ("pipe", os.mkfifo),
        ("folder", os.mkdir),
    ):
        for place in ("README.md", "onnx/beside"):
            folder = target.copy(_SMALL)
            path = folder / place
            shutil.copy(folder / "README.md", folder.parent / "kept")
            path.unlink(missing_ok=True)
            put(path)
            outcome = target.try_folder(folder)
            harmless = name == "folder" and place != "README.md"  # an empty folder holds nothing
            if outcome.kind == "failed" or (outcome.kind == "accepted" and not harmless):
                gave_way.append(f"{name} at {place}: {outcome.kind}: {outcome.said}")
    return gave_way


def _with(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """Return a table with another value at a path of keys; a number stands for the key or the element of that place."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, dict):
        name = list(value)[key] if isinstance(key, int) else key
        return {**value, name: _with(value[name], tuple(rest), new)}
    assert isinstance(key, int)
    return [*value[:key], _with(value[key], tuple(rest), new), *value[key + 1 :]]


def _write(folder: Path, manifest: Any) -> None:
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


ATTEMPTS = (
    Attempt(
        "mutations",
        "random bytes of files other than the manifest are changed, lost, added or repeated, 1,000 times",
        "each is refused: size or SHA-256 is not the manifest's",
        _mutations,
    ),
    Attempt(
        "manifest-mutations",
        "random bytes of `manifest.json` are changed in the same ways, 50 times",
        "none ends in a traceback, a crash or a wait; what is still a manifest is accepted: it needs a signature",
        _manifest_mutations,
    ),
    Attempt(
        "forged",
        "weights, graphs, golden cases or limits are changed or taken out, and all hashes recomputed",
        "refused: golden cases miss their limits, or nothing is left to judge by; a forger who trains weights and "
        "records their golden cases needs a signature to be told from the publisher",
        _forged,
    ),
    Attempt(
        "names",
        "the manifest names files and graphs outside the folder, and names with line ends and terminal commands",
        "refused before anything is opened",
        _names,
    ),
    Attempt(
        "types",
        "lists for tables, texts for numbers, NaN, 10^400, no end of nesting, wherever the manifest is read",
        "refused in one line, or read as if it were not there",
        _types,
    ),
    Attempt(
        "special-files",
        "links, pipes and folders in place of files, and beside them",
        "refused without being opened; an empty folder is ignored",
        _special_files,
    ),
)
