"""The model card of a release, ``README.md`` at its root: what is in it, and how it is had and checked.

It is made of the manifests alone, so that a release of the same folders has the same card.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from publish.provenance import head, hub_tags, license_link
from publish.sign import Signer
from qwen_omni_onnx.common.identity import LICENSE, Model
from qwen_omni_onnx.common.quantized import float32_files

__all__ = ["CARD", "Released", "listed", "render"]

CARD = "README.md"
_SPEAKING = {"frontend", "encoder", "thinker", "talker", "token2wav"}  # what `qwen-omni-onnx speak` needs


@dataclass(frozen=True)
class Released:
    """A folder of a release.

    Attributes:
        manifest: Its manifest.
        signed: Whether there is a signature beside it.
    """

    manifest: Mapping[str, Any]
    signed: bool

    @property
    def path(self) -> str:
        """Its path in the release."""
        return f"{self.manifest['component']}/{self.manifest['name']}"

    @property
    def model(self) -> Model:
        """The model that its weights are of."""
        return Model.of(self.manifest["source"], Path(self.path))


def listed(card: str) -> dict[str, str]:
    """Return the folders that the table of a card lists: their paths in the release, by component.

    Args:
        card: Content of a card that :func:`render` has written.
    """
    links = [line.partition("](")[2].partition(")")[0] for line in card.splitlines() if line.startswith("| [")]
    paths = [PurePosixPath(link).parent for link in links if link.endswith(f"/{CARD}")]
    return {path.parts[0]: str(path) for path in paths if len(path.parts) == 2 and ".." not in path.parts}


def render(folders: Iterable[Released], name: str, signer: Signer | None) -> str:
    """Return the content of the card.

    Args:
        folders: What is in the release, once it is there.
        name: Where it is, as ``qwen-omni-onnx pull`` takes it.
        signer: Who signs; None: nobody.
    """
    ordered = sorted(folders, key=lambda folder: folder.path)
    models = list({folder.model.name: folder.model for folder in ordered}.values())
    files = [PurePosixPath(file).stem for folder in ordered for file in folder.manifest["files"]]
    bits = {stem.rpartition("_")[2] for stem in files if stem.endswith(("_int4", "_int8"))}
    licences = [f"{f.path}/{LICENSE}" for f in ordered if LICENSE in f.manifest["files"]]
    sections = [
        head(models, license_link(models[0], next(iter(licences), None)), hub_tags(models, bits)),
        f"# {' and '.join(model.name for model in models)} as ONNX",
        _synthetic(ordered),
        "Folders of ONNX graphs for stock ONNX Runtime, each with its golden cases, and with the SHA-256 of every file "
        "and tensor. The card of a folder has its figures, its gates, and the licence and origin of its weights.",
        _table(ordered),
        _use(ordered, name, signer),
        _signed(ordered, signer),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _synthetic(folders: Sequence[Released]) -> str:
    if not any(folder.manifest["synthetic_weights"] for folder in folders):
        return ""
    return "> **Synthetic weights.** Folders whose names end in `-synthetic` compute nothing useful."


def _table(folders: Sequence[Released]) -> str:
    rows = ["| component | graphs | MB | with all float32 graphs | signed |", "|---|---|--:|--:|---|"]
    for folder in folders:
        files = folder.manifest["files"]
        graphs = ", ".join(f"`{PurePosixPath(file).name}`" for file in sorted(files) if file.endswith(".onnx"))
        left = float32_files(folder.manifest)
        whole = sum(entry["bytes"] for entry in files.values())
        small = sum(entry["bytes"] for file, entry in files.items() if file not in left)
        link = f"[{folder.manifest['component']}]({folder.path}/{CARD})"
        sizes = f"{small / 1e6:,.1f} | {whole / 1e6:,.1f}"
        rows.append(f"| {link} | {graphs} | {sizes} | {'yes' if folder.signed else 'no'} |")
    return "\n".join(rows)


def _use(folders: Sequence[Released], name: str, signer: Signer | None) -> str:
    trust = f" {_trust(signer)}" if signer else ""
    lines = [
        f"qwen-omni-onnx pull {name}{trust}    # into models/published; --components NAME,... takes some of them",
        f"qwen-omni-onnx verify models/published{trust}    # and interfaces, and golden cases on your machine",
    ]
    if {folder.manifest["component"] for folder in folders} >= _SPEAKING:
        lines.append("qwen-omni-onnx speak question.wav reply.wav")
    code = "\n".join(lines)
    return f"""## Use

`pip install` of the project's repository brings the run-time: NumPy and ONNX Runtime, no PyTorch.

```sh
{code}
```

A pull compares every byte with the manifests. It leaves out the float32 graphs of what is quantized, unless \
`--float32` is given; cut off, it goes on where it was."""


def _signed(folders: Sequence[Released], signer: Signer | None) -> str:
    if not any(folder.signed for folder in folders):
        return "Nobody has signed this: whoever may write here may replace files together with their hashes."
    said = (
        "Beside the manifest of a signed folder lies `model.sig`, an OpenSSF model signature over every file. Whom to "
        "ask for, learn from somebody whom you trust, not from here"
    )
    return f"{said}: `{_trust(signer)}`." if signer else f"{said}."


def _trust(signer: Signer | None) -> str:
    """Return the options of ``pull`` and ``verify`` that ask for a signer."""
    if signer is None or signer.key is None:
        return "--identity IDENTITY --issuer URL" if signer else ""
    return "--key KEY.pub" if signer.certificate is None else "--certificates ROOTS.pem"
