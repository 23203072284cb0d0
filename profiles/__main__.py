"""Copy the repository with a profile's parameters: ``python -m profiles NAME FOLDER``.

DVC reads its parameters from ``params.yaml`` alone, and a build belongs to a repository, so a profile that leaves the
usual build as it is gets a repository of its own. That is a repository of DVC without Git: what is copied may come from
an archive, or belong to another user, and Git refuses both. Only what differs is copied, so that a second build is as
short as the change.
"""

from __future__ import annotations

import configparser
import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from components import names
from omni.program import COPY, program
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError

__all__ = ["HERE", "laid_over", "with_profile"]

HERE, PARAMS = Path(__file__).parent, "params.yaml"
COPIED = (  # all that the stages and the benchmarks are made of
    "benchmarks", "calibrate", "components", "compose", "data/speech", "data/tasks", "data/text", "export", "inputs",
    "omni", "profiles", "publish", "pull", "quantize", "reference", "src/qwen_omni_onnx", "validate",
    ".dvc/config", ".dvcignore", "constraints.txt", "dvc.yaml",
)  # fmt: skip
_REPLACED = (".nodes", ".compensation")  # tables by node, which a profile gives whole
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def with_profile(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return parameters with a profile's changes, which come after those of the profile that it extends.

    Args:
        params: Parameters.
        name: Name of the profile.

    Raises:
        UserError: There is no profile of that name, or it has a key that the parameters do not have.
    """
    path = HERE / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in HERE.glob("*.yaml")))
        raise UserError(f"no profile {name!r}; there are: {known}")
    changes: dict[str, Any] = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    extended = changes.pop("extends", None)
    return laid_over(params if extended is None else with_profile(params, extended), changes)


def laid_over(params: Mapping[str, Any], changes: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return parameters with a profile's changes: tables are merged, all else is replaced; an empty table empties one.

    Tables of single nodes are replaced: another model does not have nodes of those names.

    Args:
        params: Parameters.
        changes: Changes of the profile.
        where: Path of the table in ``params.yaml``.

    Raises:
        UserError: The profile has a key that the parameters do not have.
    """
    result = dict(params)
    for key, value in changes.items():
        path = f"{where}.{key}".lstrip(".")
        if key not in params:
            raise UserError(f"profile: {path}: {PARAMS} has none")
        merged = isinstance(value, dict) and isinstance(params[key], dict) and not path.endswith(_REPLACED)
        result[key] = laid_over(params[key], value, path) if merged and value else value
    return result


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="Name of a file in profiles/, without .yaml.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the copy; what an earlier copy built there stays.")],
    source: Annotated[
        str | None, typer.Option(help="Source of the checkpoint instead of the profile's: hub, synthetic, or a folder.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Let FOLDER hold files of another origin, some of which may be replaced."),
    ] = False,
) -> None:
    """Copy the program, its clips and texts to FOLDER, with the parameters of a profile, as a repository of its own."""
    root = HERE.parent
    yaml = YAML(typ="safe", pure=True)
    params = with_profile(yaml.load((root / PARAMS).read_text(encoding="utf-8")), name)
    if source is not None:
        params["model"]["source"] = _source(source)
    _require_copy(folder, root, overwrite)
    (folder / COPY).parent.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(root):
        copied = {"profile": name, "program": program()}
    (folder / COPY).write_text(f"{json.dumps(copied)}\n", encoding="utf-8")
    settings = folder / ".dvc/config.local"
    settings.touch()
    settings.chmod(0o600)  # it may hold credentials
    settings.write_text(_local_settings(root / ".dvc/config.local"), encoding="utf-8")
    for file in _files(root):
        place = folder / file.relative_to(root)
        if not place.is_file() or place.read_bytes() != file.read_bytes():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    _remove_stale(folder, root)
    for unbuilt in set(names()) - {*params["components"], *params["composed"]}:
        # DVC wants every dependency of the stage `report` to be there, also of what this profile does not build.
        (folder / "reports" / unbuilt).mkdir(parents=True, exist_ok=True)
    with output.writing(folder / PARAMS) as beside, beside.open("w", encoding="utf-8") as written:
        yaml.dump(params, written)


def _local_settings(own: Path) -> str:
    """Return DVC's settings of a copy: this machine's own, such as credentials of a remote, and that there is no Git.

    Raises:
        UserError: This machine's own cannot be read.
    """
    settings = configparser.RawConfigParser()
    settings.read_dict({"core": {}})
    try:
        settings.read(own, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise UserError(f"{own}: not settings of DVC: {' '.join(str(error).split())}") from None
    settings["core"]["no_scm"] = "true"
    written = io.StringIO()
    settings.write(written)
    return written.getvalue()


def _source(named: str) -> str:
    """Return a source of the checkpoint as the copy names it: a folder by its whole path.

    Raises:
        UserError: It is neither a known word nor a folder.
    """
    if named in ("hub", "synthetic"):
        return named
    if not named or not os.path.isdir(named):
        raise UserError(f"--source {named!r}: hub, synthetic, or a folder that is there")
    return str(Path(named).resolve())


def _remove_stale(folder: Path, root: Path) -> None:
    """Remove modules of an earlier copy that there are no more: a package would hide a module of its name."""
    for path in _files(folder):
        if path.suffix == ".py" and not (root / path.relative_to(folder)).is_file():
            path.unlink()


def _files(root: Path) -> Iterator[Path]:
    for path in (root / name for name in COPIED):
        found = [path] if path.is_file() else path.rglob("*")
        yield from (file for file in found if file.is_file() and "__pycache__" not in file.parts)


def _require_copy(folder: Path, root: Path, overwrite: bool) -> None:
    """Refuse a folder whose files would be replaced, unless it is an earlier copy.

    Raises:
        UserError: It is this repository or contains it, or it holds what this command did not write.
    """
    if root.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: is or holds the repository that is copied; give another folder")
    vacant = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not (vacant or overwrite or (folder / COPY).is_file()):
        raise UserError(
            f"{folder}: in the way, and no copy that this command made; give another folder, or --overwrite"
        )


if __name__ == "__main__":
    run_app(app)
