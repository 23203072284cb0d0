"""Made-up published folders, and keys to sign them with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from qwen_omni_onnx.common import artifact

WEIGHTS = bytes(range(256)) * 1200  # of the quantized graph: 300 kB


def write_published(root: Path, component: str, changed: Mapping[str, bytes] | None = None) -> Path:
    """Write a folder that looks as if it were published; return it.

    Args:
        root: Folder to write ``COMPONENT/NAME`` into.
        component: The component.
        changed: Files with another content, or further ones.
    """
    folder = root / component / f"tiny-{component}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    files = {
        "README.md": f"# {component}\n".encode(),
        "LICENSE": b"the same in every component\n",
        "config.json": b"{}\n",
        "onnx/graph.onnx": b"graph of " + component.encode(),
        "onnx/graph.onnx.data": WEIGHTS[::-1] + component.encode(),
        "onnx/graph_int8.onnx": b"quantized graph of " + component.encode(),
        "onnx/graph_int8.onnx.data": component.encode() + WEIGHTS,
        "golden/golden.safetensors": b"golden of " + component.encode(),
        **(changed or {}),
    }
    facts = {"kind": "published", "name": folder.name, "component": component, "quantization": {"graph": {}}}
    with artifact.writing(folder, **facts) as beside:
        for name, content in files.items():
            (beside / name).parent.mkdir(exist_ok=True)
            (beside / name).write_bytes(content)
    return folder


def write_keys(folder: Path) -> tuple[Path, Path]:
    """Write a private key and its public one; return their places."""
    private, public = folder / "key.pem", folder / "key.pub"
    key = ec.generate_private_key(ec.SECP256R1())
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public
