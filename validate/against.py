"""Does a build here give the bytes that somebody has published? ``python -m validate rebuild --against SOURCE``.

Of a release, nothing but the manifests is fetched. They say by which commit of the program, from which weights and with
which parameters it was built; where these are not the ones here, one line says what to change before building again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omni.as_built import as_built
from omni.params import load
from omni.program import program
from omni.resources import machine
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.download import manifests
from validate.measured import built_components

__all__ = ["Compared", "compare"]


@dataclass(frozen=True)
class Compared:
    """What is found of a component.

    Attributes:
        component: The component.
        files: Number of files that were compared: graphs, weights and golden cases.
        different: Those that are others here, or missing.
        there: Processor that the published ones were measured on.
        here: This one. Another one adds in another order, so that what is calibrated or recorded may differ.
    """

    component: str
    files: int
    different: list[str]
    there: str
    here: str


def compare(release: str, names: Collection[str] | None) -> list[Compared]:
    """Compare the artifacts that were built here with a release.

    Args:
        release: Where it is, as ``qwen-omni-onnx pull`` takes it.
        names: Components; None takes all that it has.

    Raises:
        UserError: There is no such release; or another program, other weights or other parameters are here.
    """
    with output.temporary_folder() as folder:
        published = manifests(release, folder, names)
    params, own = load(), program()
    built = {measured.name: measured for measured, _ in built_components(list(published))}
    for name, manifest in published.items():
        _require_program(name, manifest, own)
        there, here = _table(manifest, "source"), artifact.read_json(built[name].folders["onnx"] / "source.json")
        for kind, one, other in (
            ("weights", there, here),
            ("params.yaml", _table(manifest, "parameters"), params.measured(name).model_dump(mode="json")),
        ):
            if differing := next(_differing(one, other), None):
                path, was, now = (one_line(str(part))[:60] for part in differing)
                raise UserError(f"{name}: {kind}: {path} was {was}, and is {now} here; change it, and build again")
    processor, found = str(machine()["processor"]), []
    for name, manifest in published.items():
        same = as_built(manifest, built[name].folders)
        measured_on = str(_table(manifest, "machine").get("processor"))
        found.append(Compared(name, len(same), [file for file in same if not same[file]], measured_on, processor))
    return found


def _require_program(name: str, manifest: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse to compare with what another program has built.

    Raises:
        UserError: It was another commit, or nobody knows.
    """
    built = _table(manifest, "program")
    if not isinstance(built.get("commit"), str) or built.get("modified"):
        raise UserError(f"{name}: built by a program that is no commit; nobody can build it again")
    if own["commit"] != built["commit"] or own["modified"]:
        here = "a modified program" if own["modified"] else own["commit"] or "no commit"
        raise UserError(f"{name}: built by {built['commit']:.40}, here is {here:.40}: check that commit out, and build")


def _table(manifest: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = manifest.get(key)
    if not isinstance(found, dict):
        raise UserError(f"its manifest has no table {key!r}: published by another version; nobody can build it again")
    return found


def _differing(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the path and both values of what differs in two JSON values."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _differing(one.get(key), other.get(key), f"{where}.{key}".lstrip("."))
    elif one != other:
        yield where, one, other
