"""What ``validate contract`` and ``validate parity`` find of a published folder, in a process of its own.

The folder may be a stranger's, and its graphs may compute without end, fill the memory or crash what opens them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from omni.params import Limits
from omni.reports import ContractCheck
from omni.resources import progress
from qwen_omni_onnx.common.agreement import CheckAgreement
from qwen_omni_onnx.common.confined import ConfinedProcess, StoppedError
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.graph_checks import limits_of
from validate import contract, parity
from validate.measured import from_published

__all__ = ["PublishedParity", "published_contract", "published_parity"]


@dataclass(frozen=True)
class PublishedParity:
    """How the golden cases of a published folder come out on this machine.

    Attributes:
        compared_with: What the golden cases are compared with, in words.
        kinds: Kinds of graphs in the folder.
        limits: Limits that the folder was published with.
        checks: Agreement by check, and by kind of graphs.
    """

    compared_with: str
    kinds: list[str]
    limits: Limits
    checks: dict[str, dict[str, CheckAgreement]]


def published_contract(folder: Path) -> tuple[str, list[ContractCheck]]:
    """Return the component of a published folder, and the results of all checks of its contract.

    Raises:
        UserError: A file is missing, extra or altered; or the graphs meet a limit, or crash.
    """
    component, rows = _confined(_contract, folder)
    return str(component), [ContractCheck(**row) for row in rows]


def published_parity(folder: Path) -> PublishedParity:
    """Compare the graphs of a published folder with its golden cases.

    Raises:
        UserError: As :func:`published_contract`, or an output is not what the golden cases are compared with.
    """
    found = _confined(_parity, folder)
    try:
        return TypeAdapter(PublishedParity).validate_python(found, strict=False)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{folder}: its manifest's {where} cannot be read by this version; publish it again") from None


def _contract(folder: str) -> Any:
    measured, _ = from_published(Path(folder))
    return [measured.name, [asdict(row) for row in contract.check(measured)]]


def _parity(folder: str) -> Any:
    measured, manifest = from_published(Path(folder))
    try:
        limits = manifest["parameters"]["gates"]
    except (KeyError, TypeError):
        raise UserError(f"{folder}: its manifest has no limits (parameters, gates); publish it again") from None
    return {
        "compared_with": measured.component.compared_with,
        "kinds": measured.kinds,
        "limits": limits,
        "checks": TypeAdapter(dict[str, dict[str, CheckAgreement]]).dump_python(parity.measure(measured, threads=0)),
    }


def _confined(work: Callable[[str], Any], folder: Path) -> Any:
    nbytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    with progress(str(folder), 1) as advance:
        try:
            with ConfinedProcess(limits_of(nbytes)) as process:
                found = process.call(work, str(folder))
        except StoppedError as error:
            raise UserError(f"{folder}: running its graphs {error}; do not use it") from None
        advance(1)
    return found
