"""Find out which model a checkpoint is and its licence, from its location, its model card and its LICENSE file.

Card and licence are text of unknown origin. Four single-line values of known characters are taken from the card; all
else in it is ignored, so that an odd card never stops a pull. A licence is named only where a file says it, and is
recorded as unknown otherwise.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

from pull.snapshot import Snapshot
from qwen_omni_onnx.common.identity import CONTRADICTORY, LICENSE, UNKNOWN, UNRECOGNIZED, Model

__all__ = ["CARD", "find_model", "made_up_model"]

CARD = "README.md"
_CARD_BYTES = 2**16  # bytes of a card that are read: the longest front matter on the hub is half of that
_NAME_LENGTH = 96  # characters of a repository's name, by the hub's own rule
_REPOSITORY = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
_LINK = re.compile(r"https://[\w.-]+(/[\w.~%/+:@=&?#-]*)?", re.ASCII)
_FILE = re.compile(r"\w[\w.-]{0,63}", re.ASCII)
_MOST_BASES = 8
_Licence = tuple[str, str | None]  # the hub's identifier; or ``other`` and the name
_APACHE: _Licence = ("apache-2.0", None)
_RESEARCH: _Licence = ("other", "qwen-research")

# The Apache License 2.0 from its title to END OF TERMS AND CONDITIONS, each run of white space one space.
_APACHE_SHA256 = "59d8f0ba87ad9a2f1a431123c8d16646e5b89ba53653e818f16d136d77263c99"
_APACHE_TEXT = re.compile(r"(Apache License Version 2\.0, January 2004 .*? END OF TERMS AND CONDITIONS)(.*)")
_APACHE_REST = re.compile(  # what may follow it, without further terms
    r" ?(APPENDIX: How to apply .{,700})?(Copyright .{,120})?"
    r"(Licensed under the Apache License, Version 2\.0 .{,600}limitations under the License\.)?"
)
_RESEARCH_TEXT = re.compile(r"qwen research license agreement\b", re.IGNORECASE)


def find_model(snapshot: Snapshot) -> Model:
    """Return the name, the origin and the licence of a checkpoint.

    The LICENSE file decides where its text is known: Apache License 2.0, Qwen Research License Agreement. A card with
    another licence than such a file makes the licence ``contradictory``.

    Args:
        snapshot: The checkpoint.
    """
    origin = snapshot.describe()
    if origin["kind"] == "synthetic":
        return made_up_model(origin["shapes_of"])
    checkpoint = origin["checkpoint"]
    repository = checkpoint if "/" in checkpoint else None  # a folder's name has no slash
    card = _front_matter(snapshot.small_file(CARD))
    said, text = _said(card), _licence_of(snapshot.small_file(LICENSE))
    license_, license_name = _judged(said, text)
    evidence = {file: found[1] or found[0] for file, found in ((CARD, said), (LICENSE, text)) if found}
    return Model(
        name=_plain(checkpoint.rpartition("/")[2]),
        repository=repository,
        revision=origin.get("commit"),
        license=license_,
        license_name=license_name,
        license_link=LICENSE if text else _link(card.get("license_link")),
        license_evidence=evidence,
        base_model=_bases(card.get("base_model")),
    )


def made_up_model(name: str) -> Model:
    """Return the identity of seeded weights in the shapes of a model, which are licensed as this program is.

    Args:
        name: Name of the model whose shapes they have.
    """
    return Model(name, license="apache-2.0", license_name=None, license_evidence={"this program": "apache-2.0"})


def _front_matter(content: bytes | None) -> Mapping[str, Any]:
    """Return the table at the head of a model card; an empty one where none can be read."""
    text = (content or b"")[:_CARD_BYTES].decode("utf-8-sig", errors="replace")
    head = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", text, re.DOTALL)
    try:
        table = YAML(typ="safe", pure=True).load(head[1]) if head else None
    except Exception:  # no YAML; the parser has an error of its own for each way to be none, and some of Python's
        table = None
    return table if isinstance(table, dict) else {}


def _said(card: Mapping[str, Any]) -> _Licence | None:
    """Return the licence that a card gives. Cards write ``apache-2.0`` and ``qwen-research`` in either key."""
    identifier, name = (_word(card.get(key)) for key in ("license", "license_name"))
    if identifier == _RESEARCH[1] or (identifier, name) == _RESEARCH:
        return _RESEARCH
    if identifier == "other":
        return _APACHE if name == _APACHE[0] else (identifier, name) if name else None
    return (identifier, None) if identifier else None


def _licence_of(content: bytes | None) -> _Licence | None:
    """Return the licence whose text a LICENSE file is; None where there is no such file."""
    if content is None:
        return None
    text = " ".join(content.decode("utf-8-sig", errors="replace").replace("https://", "http://").split())
    if _RESEARCH_TEXT.match(text):
        return _RESEARCH
    whole = _APACHE_TEXT.fullmatch(text)
    if whole and hashlib.sha256(whole[1].encode()).hexdigest() == _APACHE_SHA256 and _APACHE_REST.fullmatch(whole[2]):
        return _APACHE
    return "other", UNRECOGNIZED


def _judged(said: _Licence | None, text: _Licence | None) -> _Licence:
    known = None if text is None or text[1] == UNRECOGNIZED else text
    if said and known and said != known:
        return "other", CONTRADICTORY
    return known or said or text or ("other", UNKNOWN)


def _word(value: Any) -> str | None:
    """Return a licence's identifier or name in lower case; None for a value that is neither."""
    if not isinstance(value, str):
        return None
    word = "-".join(value.lower().split(" "))
    return word if re.fullmatch(r"[a-z0-9][a-z0-9.+_-]{0,63}", word) else None


def _link(value: Any) -> str | None:
    fits = isinstance(value, str) and len(value) <= 300 and (_LINK.fullmatch(value) or _FILE.fullmatch(value))
    return value if fits else None


def _bases(value: Any) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [value]
    return tuple(one for one in listed[:_MOST_BASES] if isinstance(one, str) and _REPOSITORY.fullmatch(one))


def _plain(name: str) -> str:
    """Return a name that fits on one line of a card; that of a folder may have any characters."""
    plain = re.sub(r"[^\w.+ -]", "-", unicodedata.normalize("NFC", name))  # macOS takes letters and accents apart
    return plain[:_NAME_LENGTH].strip() or "checkpoint"
