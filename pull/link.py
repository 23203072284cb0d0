"""Link the checkpoint's folder to ``models/snapshot``, where DVC sees what is in it: ``python -m pull.link``.

DVC hashes a file once, and anew where its size or times changed. ``.dvcignore`` limits it to the files of the folder
that ``pull`` may read. Where ``model.source`` is not a folder, an empty artifact takes the place of the link.
"""

from __future__ import annotations

from pathlib import Path

import typer

from omni.params import load
from pull.folder import FolderSnapshot
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError

LINK = Path("models/snapshot")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def link() -> None:
    """Write models/snapshot: a link to the folder that model.source names, or an empty artifact."""
    model = load().model
    if LINK.is_symlink():  # first: nothing may be written into the folder that it leads to
        LINK.unlink()
    if model.folder is None:
        with artifact.writing(LINK, kind="snapshot", source=model.source):
            return
    FolderSnapshot(model.folder)  # refuses what is not a folder
    if LINK.exists():
        _remove_artifact()
    LINK.parent.mkdir(parents=True, exist_ok=True)
    LINK.symlink_to(model.folder.absolute())


def _remove_artifact() -> None:
    """Remove the empty artifact where a link belongs.

    Raises:
        UserError: Something else is there, such as a download.
    """
    if [path.name for path in LINK.iterdir()] != [artifact.MANIFEST]:
        raise UserError(f"{LINK}: in the way of a link to the folder that model.source names; move it")
    (LINK / artifact.MANIFEST).unlink()
    LINK.rmdir()


if __name__ == "__main__":
    run_app(app)
