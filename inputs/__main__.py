"""Record the inputs of components: ``python -m inputs [COMPONENT...]``.

Clips of speech run through the float32 graphs of one component after another, so that calibration and golden cases use
realistic inputs; texts join them before the Thinker. A component's block in ``params.yaml`` names the sources of its
inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from safetensors.numpy import load_file, save_file

from components import component, names, require_own
from inputs import dialogue
from inputs.dialogue import SPLITS, Recordings
from inputs.texts import record_texts
from inputs.through import RecordFeeds, Through, clip_by_clip
from omni.component import Component
from omni.inputs import CALIBRATION, FOLDER, HELD_OUT, Recording, feeds_file, recordings, save
from omni.params import Params, load
from omni.patterns import first_match
from omni.pieces.work import OneProcess, Pool, StageWorkers, open_pool
from omni.resources import progress
from omni.schema import SyntheticCodes, SyntheticParams
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.runtimes import DECODERS, RUNTIMES
from qwen_omni_onnx.sound.audio import clips, read_audio

__all__ = ["record"]

_HELD_OUT_EVERY = 5  # of a user's arrays, every fifth file is held out, and the others calibrate
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def record(name: str, params: Params, pool: Pool | None = None) -> Recordings:
    """Return recordings of a component's first input, float32, without the batch axis; they are computed lazily.

    Args:
        name: Name of the component.
        params: Parameters.
        pool: Processes that share the work; None: this one alone.

    Raises:
        UserError: A file or folder is not usable, or the component that feeds this one is not built or has no
            recordings.
    """
    pool = pool or OneProcess()
    inputs = params.component(name).inputs
    source, synthetic = inputs.source, inputs.synthetic
    description = component(name)
    contract = description.interface(read_config(Path("models/onnx") / name))
    found: Recordings
    if source in names():
        found = _component_outputs(source, params, pool)
        if (symbols := contract.symbols) is not None:  # classes beyond are special tokens
            found = {split: map(partial(_best, symbols), of_split) for split, of_split in found.items()}
        if description.text:
            found = dialogue.replied(found, description, params)
        elif name in DECODERS:
            found = _through(Through(name, "spoken", params.sessions.threads), found, pool)
    elif source == "synthetic" and isinstance(synthetic, SyntheticCodes):
        found = {split: _codes(synthetic, contract, split) for split in SPLITS}
    elif source == "synthetic" and isinstance(synthetic, SyntheticParams):
        found = {split: _synthetic(synthetic, contract, split) for split in SPLITS}
    elif contract.length == "samples":
        found = {
            split: (Recording(path.stem, read_audio(path)) for path in clips(Path(source) / split)) for split in SPLITS
        }
    else:
        found = {split: _arrays(Path(source), contract, split) for split in SPLITS}
    own = {
        split: _require_shape(name, source, contract, islice(of_split, inputs.clips))
        for split, of_split in found.items()
    }
    if inputs.texts is None:
        return own
    texts = {split: record_texts(Path(inputs.texts) / split, description) for split in SPLITS}
    return {split: chain(own[split], islice(texts[split], inputs.clips)) for split in SPLITS}


def _best(symbols: int, logits: Recording) -> Recording:
    """Return the best of the first symbols of each row."""
    return logits._replace(array=logits.array[:, :symbols].argmax(-1))


def _require_shape(name: str, source: str, contract: GraphContract, found: Iterable[Recording]) -> Iterator[Recording]:
    port = contract.inputs[0]
    for recording in found:
        shape = recording.array.shape
        if not _fits(shape, port.shape[1:]):
            raise UserError(f"inputs.source: {source} gives {list(shape)} for {recording.name}, {name} takes {port}")
        yield recording


def _component_outputs(name: str, params: Params, pool: Pool) -> Recordings:
    """Return what a component passes on to the next: its float32 graphs run on its own recordings.

    That is the first output, cut to its length; the Thinker tells the Talker of what has a reply, and the Talker gives
    logits. The graphs were checked against their manifest when the component's own inputs were recorded.
    """
    description = component(name)
    own: Recordings = {split: recordings(name, split) for split in SPLITS}
    if description.text:
        return dialogue.told(own, description, pool)
    if name in DECODERS:
        return _through(Through(name, "logits", params.sessions.threads), own, pool)
    if name in RUNTIMES:
        raise UserError(f"inputs.source: {name} feeds no other component; give another source")
    given = _through(Through(name, "output", params.sessions.threads), own, pool)
    return {split: (output for output in of_split if output.array.size) for split, of_split in given.items()}


def _through(work: Through, found: Recordings, pool: Pool) -> Recordings:
    """Return what recordings become; in one process each when it is asked for, or else all when the first one is."""

    def of_split(split: str) -> Iterator[Recording]:
        # What is lazy stays so in one process: the Thinker's part of a recording is gone when the Talker's is made.
        alone = isinstance(pool, OneProcess)
        given = found[split] if alone else list(found[split])
        names = [] if alone else [one.name for one in given]
        return clip_by_clip(work, given, names, f"{work.name}: {split}", pool)

    return {split: of_split(split) for split in SPLITS}


def _codes(params: SyntheticCodes, contract: GraphContract, split: str) -> Iterator[Recording]:
    """Yield clips of uniformly distributed codes; every second clip is for calibration, the others are held out."""
    assert contract.symbols is not None
    half = SPLITS.index(split)
    for index in range(half, params.clips, 2):
        random = np.random.default_rng([params.seed, index])
        yield Recording(f"synthetic-{index}", random.integers(contract.symbols, size=params.codes))


def _synthetic(params: SyntheticParams, contract: GraphContract, split: str) -> Iterator[Recording]:
    """Yield normal values, scaled by channel and, log-normally, by token, like a Thinker's hidden states."""
    width = contract.inputs[0].shape[-1]
    assert isinstance(width, int)
    model = np.random.default_rng([params.seed, 2])  # all batches have the same outlier channels
    outliers = min(params.outlier_channels, width)
    channel = np.ones(width, np.float32)
    channel[model.choice(width, outliers, replace=False)] = model.uniform(*params.outlier_range, outliers)
    for index in range(params.batches):
        random = np.random.default_rng([params.seed, SPLITS.index(split), index])
        token = np.exp(params.token_spread * random.standard_normal((params.tokens, 1), dtype=np.float32))
        values = random.standard_normal((params.tokens, width), dtype=np.float32) * channel * token
        yield Recording(f"synthetic-{index}", values)


def _arrays(folder: Path, contract: GraphContract, split: str) -> Iterator[Recording]:
    """Yield the arrays of a user's files of one split."""
    axes = contract.inputs[0].shape[1:]
    for path in _array_files(folder, split):
        for name, array in _read_arrays(path):
            if not array.size or not (_fits(array.shape, axes) or _fits(array.shape[1:], axes)):
                shape = ", ".join(map(str, axes))
                raise UserError(f"{path}: {name} is {list(array.shape)}; [{shape}] or [batch, {shape}] is needed")
            array = array.reshape(-1, *array.shape[-len(axes) :])
            array = _floats(array, path, name) if contract.symbols is None else _symbols(array, contract, path, name)
            for row, recording in enumerate(array):
                yield Recording(f"{name}/{row}", recording)


def _array_files(folder: Path, split: str) -> list[Path]:
    """Return the files of one split: a subfolder's; without subfolders, every fifth (or the last) is held out."""
    if not folder.is_dir():
        raise UserError(f"inputs.source: {folder}: no such folder; give synthetic, or a folder of recorded arrays")
    if any((folder / name).is_dir() for name in SPLITS):
        files = _arrays_in(folder / split) if (folder / split).is_dir() else []
        if not files:
            raise UserError(f"{folder / split}: no .npy or .safetensors file; some must calibrate, and others judge")
        return files
    files = _arrays_in(folder)
    if len(files) < 2:
        raise UserError(
            f"{folder}: {len(files)} .npy or .safetensors files; at least 2 are needed, one of them held out"
        )
    every = min(_HELD_OUT_EVERY, len(files))
    return [path for index, path in enumerate(files, 1) if (index % every == 0) == (split == HELD_OUT)]


def _arrays_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".safetensors"))


def _floats(array: np.ndarray, path: Path, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused below
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {name} holds NaN or infinity")
    return array


def _symbols(array: np.ndarray, contract: GraphContract, path: Path, name: str) -> np.ndarray:
    assert contract.symbols is not None
    if array.dtype.kind not in "iu":
        raise UserError(f"{path}: {name} is {array.dtype}; integers are needed")
    if array.min() < 0 or array.max() >= contract.symbols:
        raise UserError(
            f"{path}: {name} goes from {array.min()} to {array.max()}; 0 to {contract.symbols - 1} is allowed"
        )
    return array.astype(np.int64)


def _fits(shape: tuple[int, ...], axes: tuple[int | str, ...]) -> bool:
    """Return whether a shape has these axes; a symbolic axis has any size."""
    return len(shape) == len(axes) and all(
        size == axis for size, axis in zip(shape, axes, strict=True) if isinstance(axis, int)
    )


def _read_arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        if path.suffix == ".npy":
            yield path.name, np.load(path, allow_pickle=False)
        else:
            yield from ((f"{path.name}/{name}", array) for name, array in sorted(load_file(path).items()))
    except Exception as error:  # each library raises errors of its own for an invalid file
        raise UserError(f"{path}: cannot be read ({error})") from None


@app.command()
def main(
    components: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMPONENT...]", help="Components; all of params.yaml if none is given."),
    ] = None,
    workers: StageWorkers = "1",
) -> None:
    """Write models/inputs/COMPONENT, for calibration and for evaluation, and those of the components that feed it."""
    params = load()
    requested = [require_own(name).name for name in components or params.components]
    with open_pool(workers) as pool:
        for dependency in dict.fromkeys(dependency for name in requested for dependency in _chain(name, params)):
            _write(component(dependency), params, pool)


def _chain(name: str, params: Params) -> list[str]:
    """Return the names of the components that feed one, directly or through others, in order, and its own name.

    Raises:
        UserError: One of those components is not built.
    """
    source = params.component(name).inputs.source
    if source in names() and not (Path("models/onnx") / source).is_dir():
        raise UserError(f"inputs.source: {source} is not built; put it into components before what it feeds")
    return [*(_chain(source, params) if source in names() else ()), name]


def _write(description: Component, params: Params, pool: Pool) -> None:
    onnx = Path("models/onnx") / description.name
    artifact.check(onnx)
    with artifact.writing(FOLDER / description.name, kind="inputs", component=description.name) as folder:
        for split, of_split in record(description.name, params, pool).items():
            found: dict[str, Recording] = {}
            for recording in of_split:
                name = recording.name
                if name in found:
                    raise UserError(f"inputs.source: {split}: two recordings are named {name}; rename one")
                if name == "__metadata__" or name.encode(errors="ignore").decode() != name:  # reserved; not UTF-8
                    raise UserError(
                        f"inputs.source: {split}: {name} cannot be the name of a recording; rename the file"
                    )
                found[name] = recording
            if not found:
                source = params.component(description.name).inputs.source
                raise UserError(f"inputs.source: {source}: no {split} recording in it")
            save(folder / f"{split}.safetensors", list(found.values()))
            if split == CALIBRATION and len(description.contracts(read_config(onnx))) > 1:
                _record_feeds(description, params, list(found.values()), folder, pool)


def _record_feeds(description: Component, params: Params, found: Sequence[Recording], folder: Path, pool: Pool) -> None:
    """Run the clips through all graphs of a component; record the inputs of each graph that is quantized."""
    name, block = description.name, params.component(description.name)
    contracts = description.contracts(read_config(Path("models/onnx") / name))
    quantized = tuple(stem for stem in contracts if first_match(block.quantize, stem))
    recorded: dict[str, dict[str, np.ndarray]] = {stem: {} for stem in quantized}
    work, names = RecordFeeds(name, quantized, params.sessions.threads), [one.name for one in found]
    with progress("inputs", len(found)) as advance:
        for of_clip in clip_by_clip(work, enumerate(found), names, f"{name}: inputs of graphs", pool):
            for stem, arrays in of_clip.items():
                recorded[stem] |= arrays
            advance(1)
    for stem, arrays in recorded.items():
        save_file(arrays, feeds_file(folder, stem))


if __name__ == "__main__":
    run_app(app)
