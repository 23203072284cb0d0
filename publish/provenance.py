"""The model card's statements on source and licence of the weights, which repeat only what the checkpoint declares."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from ruamel.yaml import YAML

from publish.evidence import Evidence
from qwen_omni_onnx.common.identity import CONTRADICTORY, LICENSE, UNKNOWN, UNRECOGNIZED, Model

__all__ = ["front_matter", "head", "hub_tags", "license_link", "made_from", "notice"]

_HUB = "https://huggingface.co"
_RESEARCH = "qwen-research"
_SEVERAL = "see-each-folder"  # where components of a release are of models under different licences
_ATTRIBUTION = re.compile(  # that section 3 of the Qwen Research License Agreement wants in a file NOTICE
    r"Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright \(c\) [^\"\u201c\u201d]{1,120}?Reserved\."
)


def front_matter(evidence: Evidence, tags: list[str]) -> str:
    """Return the card's YAML head: licence, tags, and the models that this was made from.

    Args:
        evidence: Artifacts and reports of the component.
        tags: Tags for the hub.
    """
    return head([evidence.model], _license_link(evidence), tags)


def head(models: Sequence[Model], link: str | None, tags: list[str]) -> str:
    """Return the YAML head of the card of one or several models: licence, tags, and what they were made from.

    Args:
        models: The models; of several licences, none is named.
        link: Link to the text of the licence; None where there is none.
        tags: Tags for the hub.
    """
    licences = {(model.license, model.license_name) for model in models}
    (licence, name), *_ = licences if len(licences) == 1 else [("other", _SEVERAL)]
    values = {"license": licence, "license_name": name, "license_link": link if licence == "other" else None}
    lines = [f"{key}: {_scalar(value)}" for key, value in values.items() if value]
    lines += ["library_name: onnxruntime", f"tags: [{', '.join(tags)}]"]
    bases = [base for model in models for base in ([model.repository] if model.repository else model.base_model)]
    if bases:
        lines += ["base_model:", *(f"- {_scalar(base)}" for base in dict.fromkeys(bases))]
        lines += ["base_model_relation: quantized"]
    return "\n".join(["---", *lines, "---"])


def hub_tags(models: Sequence[Model], bits: Iterable[str]) -> list[str]:
    """Return the tags that the hub finds a card by.

    Args:
        models: The models.
        bits: How weights are stored: ``int8``, ``int4``.
    """
    names = [name for model in models for name in (model.name, *model.base_model)]
    family = ["qwen2.5-omni"] if any("qwen2.5-omni" in name.lower() for name in names) else []
    return ["onnx", *sorted(bits), *family, "speech"]


def made_from(evidence: Evidence) -> str:
    """Return the card's section on the source of the weights and their licence."""
    source, model = evidence.source, evidence.model
    weights = f"{source['checkpoint']}, seed {source['seed']}" if evidence.synthetic else _named(model)
    text = f"Weights: {weights}. Quantization: {', '.join(sorted(evidence.schemes)) or 'none'}."
    if evidence.synthetic:
        text += f" They are this program's own, in the shapes of {model.name}, and licensed as it is: Apache-2.0."
    else:
        text += f"\n\n{_licence(evidence)}"
        if model.base_model:
            bases = " and ".join(f"[{base}]({_HUB}/{base})" for base in model.base_model)
            text += f" {model.name} names {bases} as what it was made from; that licence may bind, too."
    return f"## Made from\n\n{text}"


def notice(evidence: Evidence) -> str | None:
    """Return the content of the file NOTICE, which the Qwen Research License Agreement requires beside the weights.

    It is the sentence that the LICENSE file prescribes, and a statement that files were changed. None for another
    licence.
    """
    path = evidence.folders["onnx"] / LICENSE
    if evidence.model.license_name != _RESEARCH or not path.is_file():
        return None
    found = _ATTRIBUTION.search(" ".join(path.read_text(encoding="utf-8", errors="replace").split()))
    changed = f"{evidence.model.name} was changed: its weights were exported to ONNX, and quantized.\n"
    return f"{found[0]}\n\n{changed}" if found else changed


def _licence(evidence: Evidence) -> str:
    """Return the sentences on the licence, on the files that declare it, and on its known restrictions."""
    model, link = evidence.model, _license_link(evidence)
    text = f", [{'LICENSE' if link == LICENSE else 'text'}]({link})" if link else ""
    says = " and ".join(f"`{file}`: `{licence}`" for file, licence in model.license_evidence.items())
    if model.license_name == UNKNOWN:
        return (
            "**No licence came with the checkpoint**: no LICENSE file, and no licence in a model card. Whether it may "
            "be used or passed on, only its authors can say."
        )
    if model.license_name == CONTRADICTORY:
        return f"**The checkpoint contradicts itself about its licence** ({says}): ask its authors before use."
    if model.license_name == UNRECOGNIZED:
        return f"Licence: the checkpoint's own{text}; no model card names it."
    if model.license_name == _RESEARCH:
        return (
            f"Licence: the Qwen Research License Agreement{text}: **for research and evaluation only, not for "
            "commercial use**. The weights were changed: exported to ONNX, and quantized. Built with Qwen."
        )
    return f"Licence: `{model.license_name or model.license}`{text}, as the checkpoint says ({says})."


def _license_link(evidence: Evidence) -> str | None:
    return license_link(evidence.model, LICENSE if (evidence.folders["onnx"] / LICENSE).is_file() else None)


def license_link(model: Model, file: str | None) -> str | None:
    """Return the link to the licence's text: beside the card, at the model card's address, or in the repository.

    Args:
        model: The model.
        file: The text's path from the card; None where it is not beside it.
    """
    link = model.license_link
    if file is not None or link is None or link.startswith("https://"):
        return file or link
    return f"{_HUB}/{model.repository}/blob/{model.revision or 'main'}/{link}" if model.repository else None


def _named(model: Model) -> str:
    """Return the model's name, linked to its revision if that is known."""
    if not model.repository:
        return model.name
    at = f"/tree/{model.revision}" if model.revision else ""
    commit = f" at commit `{model.revision}`" if model.revision else ""
    return f"[{model.repository}]({_HUB}/{model.repository}{at}){commit}"


def _scalar(text: str) -> str:
    """Return the YAML of a string, quoted where plain text would not load as a string: ``no`` and ``1.0``."""
    return text if YAML(typ="safe", pure=True).load(text) == text else json.dumps(text)
