"""How reports on components with one graph and with several are read alike."""

from __future__ import annotations

from typing import Any

__all__ = ["checks_of", "parts_of"]


def checks_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return ``{check: {kind: ...}}`` of a report on parity; the only check of a component with one graph is ""."""
    return report["checks"] if "checks" in report else {"": report["graphs"]}


def parts_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a report on latency or sessions by graph; that of a component's only graph is ""."""
    return report.get("parts", {"": report})
