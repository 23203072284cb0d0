"""Change one value of ``params.yaml``; comments, layout and all other values stay unchanged."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from omni.params import load
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.errors import UserError

__all__ = ["dump", "set_value"]


def set_value(path: Path, keys: tuple[str, ...], value: Any, advice: str) -> None:
    """Set the value at a path of keys; the file is replaced atomically.

    Args:
        path: The parameter file.
        keys: Keys of the nested tables; all of them exist.
        value: The new value, of a type that ruamel.yaml can write.
        advice: Advice to the user for messages.

    Raises:
        UserError: Rewriting the file would change its layout or lose comments, or the value is not allowed. The file
            is then unchanged.
    """
    text, name = path.read_text(encoding="utf-8"), ".".join(keys)
    yaml = YAML()
    yaml.preserve_quotes, yaml.width, yaml.Representer = True, 2**20, _Representer
    table = yaml.load(text)
    if dump(yaml, table) != text:
        raise UserError(f"{path}: rewriting it would change more than {name}; {advice}")
    *sections, last = keys
    section = table
    for key in sections:
        section = section[key]
    section[last] = value
    changed = dump(yaml, table)
    if _comments(changed) != _comments(text):
        raise UserError(f"{path}: {name} holds comments that would be lost; {advice}")
    with output.writing(path) as beside:
        beside.write_text(changed, encoding="utf-8")
        beside.chmod(path.stat().st_mode & 0o777)
        load(beside)


def dump(yaml: YAML, table: Any) -> str:
    """Return a table as ruamel.yaml writes it."""
    text = io.StringIO()
    yaml.dump(table, text)
    return text.getvalue()


class _Representer(RoundTripRepresenter):
    """Writes null as ``null``, where ruamel.yaml writes nothing."""

    def represent_none(self, data: None) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def _comments(text: str) -> list[str]:
    return [line.partition("#")[2] for line in text.splitlines() if "#" in line]
