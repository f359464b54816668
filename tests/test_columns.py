import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.data.columns import Field, Ragged, cut, equal, join, smallest_unsigned, take

byte_strings = st.lists(st.binary(max_size=20), max_size=12)


@given(byte_strings, st.data())
def test_ragged_entries_are_taken_as_a_list_would_be(
    values: list[bytes], data: st.DataObject
) -> None:
    column = Ragged.of(values)
    chosen = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=9)) if values else []

    assert column.tolist() == values
    assert column.take(np.array(chosen, np.int64)).tolist() == [values[i] for i in chosen]


@given(byte_strings, st.integers(0, 12), st.integers(0, 12))
def test_a_ragged_column_is_cut_as_a_list_would_be(
    values: list[bytes], start: int, stop: int
) -> None:
    assert Ragged.of(values)[start:stop].tolist() == values[start:stop]


@given(st.lists(byte_strings, min_size=1, max_size=4), st.integers(0, 5))
def test_parts_are_joined_in_order(parts: list[list[bytes]], start: int) -> None:
    columns = [{"a": Ragged.of(part), "b": np.arange(len(part))} for part in parts]
    cuts = [cut(part, start, 12) for part in columns]

    joined = join(cuts)

    assert joined["a"].tolist() == [value for part in parts for value in part[start:]]
    assert joined["b"].tolist() == [i for part in parts for i in range(start, len(part))]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_arrow_arrays_of_every_width_become_ragged_columns(kind: pa.DataType) -> None:
    array = pa.array(["one", "", "three", "ünf"], kind)

    assert Ragged.from_arrow(array).texts() == ["one", "", "three", "ünf"]
    assert Ragged.from_arrow(array[1:3]).texts() == ["", "three"]
    assert Ragged.from_arrow(array[:0]).texts() == []


def test_samples_are_taken_from_every_column_alike() -> None:
    columns = {"a": Ragged.of([b"x", b"yy", b"z"]), "b": np.array([1, 2, 3])}

    taken = take(columns, np.array([2, 2, 0]))

    assert taken["a"].tolist() == [b"z", b"z", b"x"]
    assert taken["b"].tolist() == [3, 3, 1]


def test_columns_are_equal_by_their_entries() -> None:
    column = Ragged.of([b"x", b"yy", b"z"])

    assert equal(column[1:], Ragged.of([b"yy", b"z"]))
    assert not equal(column, Ragged.of([b"xy", b"y", b"z"]))
    assert not equal(column, np.arange(3))
    assert equal(np.arange(3), np.arange(3))


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(0, "uint8"), (255, "uint8"), (256, "uint16"), (65536, "uint32"), (2**32, "uint64")],
)
def test_token_ids_get_the_smallest_dtype_that_holds_them(largest: int, dtype: str) -> None:
    assert smallest_unsigned(largest) == dtype


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("bool", ()), ("complex64", ()), ("S4", ()), ("float32", (0,)), ("uint8", (2, -1))],
)
def test_a_field_that_cannot_be_stored_is_refused(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"dtype|shape"):
        Field(dtype, shape)


def test_a_ragged_column_has_no_single_entries() -> None:
    with pytest.raises(TypeError, match="cut by slices"):
        Ragged.of([b"a"])[0]  # type: ignore[index]  # as a user might try


def test_a_field_knows_the_bytes_of_an_entry() -> None:
    assert Field("float32", (2, 3)).entry_bytes == 24
    assert Field("int64").entry_bytes == 8
    assert Field("text").is_ragged
    assert Field("image", (3, 8, 8)).entry_bytes == 0
