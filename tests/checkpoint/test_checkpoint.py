"""The header of a safetensors file: what is read from it, and which lies are found out."""

from __future__ import annotations

import json
import os
import re
import string
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.numpy import save_file

from omni.checkpoint import (
    DTYPES,
    HEADER_LENGTH_BYTES,
    Checkpoint,
    TensorEntry,
    TensorSpec,
    encode_header,
    header_length,
    parse_header,
    read_config,
    require_finite,
)
from qwen_omni_onnx.common.errors import UserError

# The same examples on every machine, however slow it is.
STEADY = settings(deadline=None, derandomize=True)

SPECS = {"a": TensorSpec("BF16", (2, 3)), "b": TensorSpec("F32", (4,))}

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
specs = st.builds(TensorSpec, st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=4).map(tuple))


def parse(header: bytes, *, data: int) -> dict[str, TensorEntry]:
    return parse_header(header, HEADER_LENGTH_BYTES + len(header) + data, "shard")


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(table: Any, *, data: int) -> str:
    """Parse in vain; return the message, having checked that it is one line that names the file."""
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    with pytest.raises(UserError) as caught:
        parse(header, data=data)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert message.startswith("shard: ")
    return message


# Headers that are right


@STEADY
@given(st.dictionaries(names, specs, max_size=5))
def test_a_header_that_was_encoded_parses_to_the_same_tensors(table: dict[str, TensorSpec]) -> None:
    encoded = encode_header(table)
    total = len(encoded) + sum(spec.nbytes for spec in table.values())

    length = header_length(encoded, total, "shard")
    entries = parse_header(encoded[HEADER_LENGTH_BYTES:], total, "shard")

    assert length == len(encoded) - HEADER_LENGTH_BYTES
    assert len(encoded) % 8 == 0
    assert {name: found.spec for name, found in entries.items()} == table
    assert list(entries) == list(table)


@STEADY
@given(st.dictionaries(st.text(string.ascii_letters, min_size=1), specs, min_size=1, max_size=5))
def test_the_safetensors_library_reads_what_was_encoded(table: dict[str, TensorSpec]) -> None:
    content = encode_header(table) + bytes(sum(spec.nbytes for spec in table.values()))

    found = {name: TensorSpec(fields["dtype"], tuple(fields["shape"])) for name, fields in deserialize(content)}

    assert found == table


@settings(STEADY, max_examples=40)
@given(table=st.dictionaries(st.text(string.ascii_letters, min_size=1), specs, min_size=1, max_size=5))
def test_files_of_the_safetensors_library_parse_to_the_same_shapes(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, TensorSpec]
) -> None:
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    save_file({name: np.zeros(spec.shape, DTYPES[spec.dtype]) for name, spec in table.items()}, path, {"format": "np"})
    content = path.read_bytes()

    length = header_length(content, len(content), "shard")
    entries = parse_header(content[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length], len(content), "shard")

    assert {name: found.spec for name, found in entries.items()} == table


def test_offsets_count_from_the_start_of_the_file() -> None:
    header = encode_header(SPECS)[HEADER_LENGTH_BYTES:]

    entries = parse(header, data=28)

    first = HEADER_LENGTH_BYTES + len(header)
    assert (entries["a"].start, entries["a"].end) == (first, first + 12)
    assert (entries["b"].start, entries["b"].end) == (first + 12, first + 28)


def test_metadata_is_no_tensor() -> None:
    assert parse(json.dumps({"__metadata__": {"format": "pt"}, "a": entry()}).encode(), data=8).keys() == {"a"}


def test_tensors_without_values_take_no_room() -> None:
    table = {"a": entry(shape=[0, 3], offsets=[0, 0]), "b": entry(), "c": entry(shape=[0], offsets=[8, 8])}

    assert parse(json.dumps(table).encode(), data=8)["c"].spec.shape == (0,)


# Lengths that lie


@pytest.mark.parametrize(
    ("first", "size", "said"),
    [
        (b"", 0, "not a safetensors file"),
        (b"1234567", 7, "not a safetensors file (only 7 bytes)"),
        ((101).to_bytes(8, "little"), 108, "header of 101 bytes in a file of 108 bytes"),
        ((100_000_001).to_bytes(8, "little"), 2**40, "at most 100000000"),
        (b"\xff" * 8, 2**40, "at most 100000000"),
        (b"PK\x03\x04\x00\x00\x08\x08", 2**40, "at most 100000000"),  # a .bin of PyTorch, renamed
    ],
)
def test_a_header_length_that_cannot_be_is_refused(first: bytes, size: int, said: str) -> None:
    with pytest.raises(UserError) as caught:
        header_length(first, size, "shard")

    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_longest_header_that_the_format_allows_is_accepted() -> None:
    assert header_length((100_000_000).to_bytes(8, "little"), 100_000_008, "shard") == 100_000_000


# Headers that lie


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"\x00" * 16, b"\xff\xfe{}", "{}".encode("utf-16"), b'{"\xed\xa0\x80":1}', b"[" * 100_000, b"9" * 5000],
)
def test_a_header_that_is_not_json_in_utf_8_is_refused(header: bytes) -> None:
    assert "header is not valid JSON" in refused(header, data=0)


@pytest.mark.parametrize("table", [[], "a", 3, None])
def test_a_header_that_is_no_table_is_refused(table: object) -> None:
    assert "not a JSON object" in refused(table, data=0)


def test_tensors_beyond_the_end_of_the_file_are_refused() -> None:
    assert "tensor 'a': ends at byte" in refused({"a": entry()}, data=7)


def test_tensors_that_overlap_are_refused() -> None:
    table = {"a": entry(), "b": entry(offsets=[4, 12])}

    assert "tensor 'b' overlaps tensor 'a'" in refused(table, data=12)


def test_tensors_that_share_their_bytes_are_refused() -> None:
    assert "overlaps" in refused({"a": entry(), "b": entry()}, data=8)


def test_a_hole_between_tensors_is_refused() -> None:
    table = {"a": entry(), "b": entry(offsets=[12, 20])}

    assert "tensor 'b' leaves a hole behind tensor 'a'" in refused(table, data=20)


def test_a_hole_behind_the_header_is_refused() -> None:
    assert "tensor 'a' leaves a hole behind the header" in refused({"a": entry(offsets=[4, 12])}, data=12)


def test_bytes_behind_the_last_tensor_are_refused() -> None:
    assert "bytes, but its header describes" in refused({"a": entry()}, data=9)


@pytest.mark.parametrize(
    ("shape", "offsets"), [([3], [0, 8]), ([2, 2], [0, 8]), ([2], [0, 4]), ([2], [8, 0]), ([2**62, 2**62], [0, 8])]
)
def test_a_shape_that_does_not_fill_its_bytes_is_refused(shape: list[int], offsets: list[int]) -> None:
    message = refused({"a": entry(shape=shape, offsets=offsets)}, data=8)

    assert f"tensor 'a': F32 {shape} is " in message
    assert f"its offsets span {offsets[1] - offsets[0]}" in message


@pytest.mark.parametrize("name", ["a", "__metadata__"])
def test_a_name_that_stands_twice_is_refused(name: str) -> None:
    one = f'"{name}": {json.dumps(entry())}'

    assert f"the name '{name}' stands twice" in refused(f"{{{one}, {one}}}".encode(), data=8)


def test_a_field_that_stands_twice_is_refused() -> None:
    text = '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "shape": [1]}}'

    assert "the name 'shape' stands twice" in refused(text.encode(), data=8)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "f32", "", "F32\n", None, 3, [], {}])
def test_a_dtype_that_is_not_known_is_refused(dtype: object) -> None:
    message = refused({"a": entry(dtype=dtype)}, data=8)

    assert f"tensor 'a': dtype {dtype!r} is not supported" in message


@pytest.mark.parametrize(
    "fields",
    [
        entry(shape=[-2]),
        entry(shape=[2.0]),
        entry(shape=["2"]),
        entry(shape=[True]),
        entry(shape=[2**63]),
        entry(shape=[10**4000, 10**4000]),
        entry(shape=[1] * 65),
        entry(shape="2"),
        entry(shape={}),
        entry(shape=2),
        entry(shape=None),
        entry(offsets=[-8, 0]),
        entry(offsets=[0]),
        entry(offsets=[0, 4, 8]),
        entry(offsets=[0, 8.0]),
        entry(offsets=[0, 10**4299]),
        entry(offsets="08"),
        entry(offsets=None),
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 8]},
        {},
        [],
        "a",
        None,
    ],
)
def test_an_entry_that_is_not_valid_is_refused(fields: object) -> None:
    assert "tensor 'a': not a valid entry" in refused({"a": fields}, data=8)


def test_a_name_with_line_breaks_is_told_on_one_line() -> None:
    assert r"'a\nb\x1b[2J\u2028'" in refused({"a\nb\x1b[2J\u2028": entry(dtype="?")}, data=8)


def test_many_names_are_compared_fast() -> None:
    # By comparing each with each, this would take minutes.
    table = ",".join(f'"{n}":0' for n in range(100_000))

    assert "stands twice" in refused(f'{{{table},"99999":0}}'.encode(), data=0)


@settings(STEADY, max_examples=400)
@given(data=st.data())
def test_a_damaged_header_parses_or_is_refused_and_nothing_else(data: st.DataObject) -> None:
    header = bytearray(encode_header(SPECS)[HEADER_LENGTH_BYTES:])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(header) - 1))
        kind = data.draw(st.sampled_from(["change", "insert", "remove", "repeat"]))
        if kind == "change":
            header[place] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789-.,:"[]{}eE')))
        elif kind == "insert":
            header[place:place] = data.draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"null", b"[]", b"{}"])))
        elif kind == "remove":
            del header[place : place + data.draw(st.integers(1, 8))]
        else:
            header[place:place] = header[place : place + 40]
        if not header:
            break

    accepted_or_refused(bytes(header), data=28)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(sorted(DTYPES)),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), children, max_size=4)
    ),
    max_leaves=12,
)


@STEADY
@given(st.dictionaries(st.text(max_size=4), json_values, max_size=4), st.integers(0, 64))
def test_any_table_parses_or_is_refused_and_nothing_else(table: dict[str, Any], data: int) -> None:
    accepted_or_refused(json.dumps(table).encode(), data=data)


@pytest.mark.parametrize("depth", [100, 900, 960, 980, 1100])
def test_a_table_of_any_depth_parses_or_is_refused_and_nothing_else(depth: int) -> None:
    accepted_or_refused(b'{"a":' + b"[" * depth + b"]" * depth + b"}", data=0)


def accepted_or_refused(header: bytes, *, data: int) -> None:
    """Whatever is accepted lies within the file, without overlap; whatever is not is told on one line."""
    entries, message = None, ""
    try:
        entries = parse(header, data=data)
    except UserError as problem:
        message = str(problem)
    if entries is None:
        assert len(message.splitlines()) == 1
        return
    assert sum(found.end - found.start for found in entries.values()) == data
    for found in entries.values():
        assert HEADER_LENGTH_BYTES + len(header) <= found.start <= found.end <= HEADER_LENGTH_BYTES + len(header) + data


# Files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as ``pull`` writes it."""
    place = tmp_path / "projection"
    place.mkdir()
    (place / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"a": values.astype(ml_dtypes.bfloat16), "b": np.array([1, -2, 3, -4], np.float32)}
    data = b"".join(array.tobytes() for array in arrays.values())
    (place / "model.safetensors").write_bytes(encode_header(SPECS) + data)
    return place


def test_a_checkpoint_reads_its_configuration_and_tensors(folder: Path) -> None:
    checkpoint = Checkpoint(folder)

    assert checkpoint.config == {"torch_dtype": "bfloat16"}
    assert checkpoint.spec("a") == SPECS["a"]
    assert checkpoint.read("a").dtype == DTYPES["BF16"]
    np.testing.assert_array_equal(checkpoint.read("a").astype(np.float32), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(checkpoint.read("b"), np.array([1, -2, 3, -4], np.float32))


def test_some_rows_of_a_tensor_are_read_alone(folder: Path) -> None:
    checkpoint = Checkpoint(folder)

    np.testing.assert_array_equal(checkpoint.read_rows("a", slice(1, 2)).astype(np.float32), [[3, 4, 5]])
    np.testing.assert_array_equal(checkpoint.read_rows("b", slice(1, 3)), np.array([-2, 3], np.float32))
    assert checkpoint.read_rows("a", slice(0, 0)).shape == (0, 3)
    np.testing.assert_array_equal(checkpoint.read_rows("a", slice(None)), checkpoint.read("a"))


def test_a_tensor_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(UserError, match="no tensor c; pull the component again"):
        Checkpoint(folder).read("c")


def test_a_folder_without_tensors_is_told(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    with pytest.raises(UserError, match="missing; run python -m pull projection"):
        Checkpoint(folder)


@pytest.mark.parametrize("size", [0, 7, 40, -1])
def test_a_file_that_is_cut_off_is_told(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)

    with pytest.raises(UserError, match=r"model\.safetensors: ") as caught:
        Checkpoint(folder)

    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_value_that_is_not_finite_is_told_with_its_flat_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, value: str
) -> None:
    monkeypatch.setattr("omni.checkpoint._BLOCK_BYTES", 16)
    values = np.ones(40, DTYPES[dtype])
    values[33] = float(value)
    path = tmp_path / "model.safetensors"
    path.write_bytes(values.tobytes())
    whole = TensorEntry(TensorSpec(dtype, (8, 5)), 0, values.nbytes)

    with pytest.raises(UserError, match=f"tensor a holds {value} at flat index 33$"):
        list(require_finite(path, "a", whole))


def test_finite_values_come_back_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni.checkpoint._BLOCK_BYTES", 16)
    values = np.linspace(-3e38, 3e38, 50, dtype=np.float32).astype(ml_dtypes.bfloat16)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"head" + values.tobytes() + b"tail")

    blocks = list(require_finite(path, "a", TensorEntry(TensorSpec("BF16", (50,)), 4, 104)))

    assert b"".join(blocks) == values.tobytes()


def test_integers_are_not_looked_at_for_infinity(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * 8)

    assert list(require_finite(path, "a", TensorEntry(TensorSpec("I8", (8,)), 0, 8))) == [b"\xff" * 8]


def test_a_file_that_ends_within_a_tensor_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(7))

    with pytest.raises(UserError, match="ends within tensor a"):
        list(require_finite(path, "a", TensorEntry(TensorSpec("I8", (8,)), 0, 8)))


# Configuration files


def test_other_configuration_files_stand_under_their_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "preprocessor_config.json").write_text('{"b": 2}')
    (tmp_path / "tokenizer.json").write_text("not JSON, not asked for")

    assert read_config(tmp_path) == {"a": 1, "preprocessor_config": {"b": 2}}


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_configuration_file_that_is_not_json_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("{")

    with pytest.raises(UserError, match=re.escape(name)):
        read_config(tmp_path)


def test_a_configuration_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")

    with pytest.raises(UserError, match=r"config\.json: missing"):
        read_config(tmp_path)
