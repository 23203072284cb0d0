"""Record what components are fed: ``python -m inputs [COMPONENT...]``.

Clips of speech go through the float32 graphs of one component after another, so that calibration and golden cases see
what each sees at work. Its block in ``params.yaml`` says where its inputs come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from safetensors.numpy import load_file, save_file

from components import component, names, require_own
from omni.command_line import run_app
from omni.component import Component
from omni.inputs import CALIBRATION, FOLDER, HELD_OUT, feed_whole, feeds_file, read
from omni.params import Params, load
from omni.patterns import first_match
from omni.resources import progress
from omni.schema import SyntheticCodes, SyntheticParams
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.runtime import GoldenRuntime
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.runtimes import DECODERS, RUNTIMES, SEVERAL_GRAPHS
from qwen_omni_onnx.sound.audio import clips, read_audio

__all__ = ["record"]

Recordings = Mapping[str, Iterator[tuple[str, np.ndarray]]]  # by split: of each clip in turn
_SPLITS = (CALIBRATION, HELD_OUT)
_HELD_OUT_EVERY = 5  # of recorded arrays: the fifth, tenth, ... file judges, the others calibrate
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def record(name: str, params: Params) -> Recordings:
    """Return recordings of a component's first input, float32, without its batch axis; computed one after another.

    Raises:
        UserError: a file or folder is not usable, or a component before this one is not built or has no recordings.
    """
    inputs = params.component(name).inputs
    source, synthetic = inputs.source, inputs.synthetic
    description = component(name)
    contract = description.interface(read_config(Path("models/onnx") / name))
    found: Mapping[str, Iterable[tuple[str, np.ndarray]]]
    if source in names():
        found = _through(source, params)
        if (symbols := contract.symbols) is not None:  # the classes beyond them are no sound
            found = _each(found, lambda logits: logits[:, :symbols].argmax(-1))
        if decoder := DECODERS.get(name):
            found = _each(found, partial(decoder.teacher_forced_inputs, _opened(decoder, description, params)))
    elif source == "synthetic" and isinstance(synthetic, SyntheticCodes):
        found = {split: _codes(synthetic, contract, split) for split in _SPLITS}
    elif source == "synthetic" and isinstance(synthetic, SyntheticParams):
        found = {split: _synthetic(synthetic, contract, split) for split in _SPLITS}
    elif contract.length == "samples":
        found = {split: ((path.stem, read_audio(path)) for path in clips(Path(source) / split)) for split in _SPLITS}
    else:
        found = {split: _arrays(Path(source), contract, split) for split in _SPLITS}
    return {
        split: _fitting(name, source, contract, islice(of_split, inputs.clips)) for split, of_split in found.items()
    }


def _each(
    found: Mapping[str, Iterable[tuple[str, np.ndarray]]], change: Callable[[np.ndarray], np.ndarray]
) -> Recordings:
    return {split: ((clip, change(recording)) for clip, recording in of_split) for split, of_split in found.items()}


def _fitting(
    name: str, source: str, contract: GraphContract, found: Iterable[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    port = contract.inputs[0]
    for clip, recording in found:
        if not _fits(recording.shape, port.shape[1:]):
            raise UserError(f"inputs.source: {source} gives {list(recording.shape)} for {clip}, {name} takes {port}")
        yield clip, recording


def _through(name: str, params: Params) -> Recordings:
    """Run a component's float32 graph, checked when its own were written, on its recordings; return what it passes on.

    That is its first output, cut to its length, or what its run-time says.
    """
    folder = Path("models/onnx") / name
    description = component(name)
    recorded = {split: read(name, split).items() for split in _SPLITS}
    if decoder := DECODERS.get(name):
        return _each(recorded, partial(decoder.next_component_inputs, _opened(decoder, description, params)))
    if name in RUNTIMES:
        raise UserError(f"inputs.source: {name} feeds no other component; give another source")
    stem, contract = description.graph(read_config(folder))
    session = open_session(folder / f"{stem}.onnx", threads=params.sessions.threads)
    found = _each(recorded, lambda recording: next(iter(run(session, feed_whole(contract, recording)).values()))[0])
    return {split: ((clip, signal) for clip, signal in of_split if signal.size) for split, of_split in found.items()}


def _opened(runtime: GoldenRuntime, description: Component, params: Params) -> Any:
    """Open a component's float32 graphs in its run-time."""
    onnx = Path("models/onnx") / description.name
    graphs = {stem: onnx / f"{stem}.onnx" for stem in description.contracts(read_config(onnx))}
    return runtime.open_graphs(graphs, onnx, params.sessions.threads)


def _codes(params: SyntheticCodes, contract: GraphContract, split: str) -> Iterator[tuple[str, np.ndarray]]:
    """Draw codes, all equally likely; half of the clips calibrate."""
    assert contract.symbols is not None
    half = _SPLITS.index(split)
    for index in range(half, params.clips, 2):
        random = np.random.default_rng([params.seed, index])
        yield f"synthetic-{index}", random.integers(contract.symbols, size=params.codes)


def _synthetic(params: SyntheticParams, contract: GraphContract, split: str) -> Iterator[tuple[str, np.ndarray]]:
    """Normal values times a channel's scale times a token's scale (log-normal), as in a Thinker's hidden states."""
    width = contract.inputs[0].shape[-1]
    assert isinstance(width, int)
    model = np.random.default_rng([params.seed, 2])  # which channels stand out is the model's, whatever the tokens
    outliers = min(params.outlier_channels, width)
    channel = np.ones(width, np.float32)
    channel[model.choice(width, outliers, replace=False)] = model.uniform(*params.outlier_range, outliers)
    for index in range(params.batches):
        random = np.random.default_rng([params.seed, _SPLITS.index(split), index])
        token = np.exp(params.token_spread * random.standard_normal((params.tokens, 1), dtype=np.float32))
        yield f"synthetic-{index}", random.standard_normal((params.tokens, width), dtype=np.float32) * channel * token


def _arrays(folder: Path, contract: GraphContract, split: str) -> Iterator[tuple[str, np.ndarray]]:
    """Read arrays that a user recorded: every fifth file (the last, if there are fewer) is held out."""
    if not folder.is_dir():
        raise UserError(f"inputs.source: {folder}: no such folder; give synthetic, or a folder of recorded arrays")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".safetensors"))
    if len(files) < 2:
        raise UserError(
            f"{folder}: {len(files)} .npy or .safetensors files; at least 2 are needed, one of them held out"
        )
    every = min(_HELD_OUT_EVERY, len(files))
    axes = contract.inputs[0].shape[1:]
    for index, path in enumerate(files, 1):
        if (index % every == 0) != (split == HELD_OUT):
            continue
        for name, array in _read_arrays(path):
            if not array.size or not (_fits(array.shape, axes) or _fits(array.shape[1:], axes)):
                shape = ", ".join(map(str, axes))
                raise UserError(f"{path}: {name} is {list(array.shape)}; [{shape}] or [batch, {shape}] is needed")
            array = array.reshape(-1, *array.shape[-len(axes) :])
            array = _floats(array, path, name) if contract.symbols is None else _symbols(array, contract, path, name)
            for row, recording in enumerate(array):
                yield f"{name}/{row}", recording


def _floats(array: np.ndarray, path: Path, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is refused as such
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
    """Whether a shape has these axes; a name stands for any size."""
    return len(shape) == len(axes) and all(
        size == axis for size, axis in zip(shape, axes, strict=True) if isinstance(axis, int)
    )


def _read_arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        if path.suffix == ".npy":
            yield path.name, np.load(path, allow_pickle=False)
        else:
            yield from ((f"{path.name}/{name}", array) for name, array in sorted(load_file(path).items()))
    except Exception as error:  # each library has errors of its own for a file that is not what it says
        raise UserError(f"{path}: cannot be read ({error})") from None


@app.command()
def main(
    components: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMPONENT...]", help="which components; all of params.yaml if none is given"),
    ] = None,
) -> None:
    """Write models/inputs/COMPONENT, what calibrates it and what judges it, after those of the components before it."""
    params = load()
    asked = [require_own(name).name for name in components or params.components]
    for before in dict.fromkeys(before for name in asked for before in _chain(name, params)):
        _write(component(before), params)


def _chain(name: str, params: Params) -> list[str]:
    """Names of the components whose graphs the inputs of one come through, in order, and its own.

    Raises:
        UserError: one of them is not built.
    """
    source = params.component(name).inputs.source
    if source in names() and not (Path("models/onnx") / source).is_dir():
        raise UserError(f"inputs.source: {source} is not built; put it into components before what it feeds")
    return [*(_chain(source, params) if source in names() else ()), name]


def _write(description: Component, params: Params) -> None:
    onnx = Path("models/onnx") / description.name
    artifact.check(onnx)
    with artifact.writing(FOLDER / description.name, kind="inputs", component=description.name) as folder:
        for split, recordings in record(description.name, params).items():
            found: dict[str, np.ndarray] = {}
            for clip, array in recordings:
                if clip in found:
                    raise UserError(f"inputs.source: {split}: two recordings are named {clip}; rename one")
                if clip == "__metadata__" or clip.encode(errors="ignore").decode() != clip:  # of safetensors; no UTF-8
                    raise UserError(
                        f"inputs.source: {split}: {clip} cannot be the name of a recording; rename the file"
                    )
                found[clip] = np.ascontiguousarray(array)
            if not found:
                source = params.component(description.name).inputs.source
                raise UserError(f"inputs.source: {source}: no {split} recording in it")
            save_file(found, folder / f"{split}.safetensors")
            if split == CALIBRATION and len(description.contracts(read_config(onnx))) > 1:
                _record_feeds(description, params, found, folder)


def _record_feeds(description: Component, params: Params, recordings: Mapping[str, np.ndarray], folder: Path) -> None:
    """Run the clips through all graphs of a component together; record what each that is quantized is fed."""
    runtime, onnx = SEVERAL_GRAPHS[description.name], Path("models/onnx") / description.name
    config = read_config(onnx)
    contract, block = description.interface(config), params.component(description.name)
    quantized = [stem for stem in description.contracts(config) if first_match(block.quantize, stem)]
    model = _opened(runtime, description, params)
    found: dict[str, dict[str, np.ndarray]] = {stem: {} for stem in quantized}
    with progress("inputs", len(recordings)) as advance:
        for number, (clip, recording) in enumerate(recordings.items()):
            ports = runtime.complete(feed_whole(contract, recording), onnx, contract, number)
            for stem, moment, fed in runtime.feeds(model, ports):
                if stem in found:
                    found[stem] |= {f"{clip}.{moment}/{port}": array for port, array in fed.items()}
            advance(1)
    for stem, arrays in found.items():
        save_file(arrays, feeds_file(folder, stem))


if __name__ == "__main__":
    run_app(app)
