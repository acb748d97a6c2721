"""What crosses the process boundary comes out as it went in, or is refused; nothing is changed on the way in silence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trueport.worker import wire

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text().filter(lambda key: key not in wire.MARKS), inner)
    ),
    max_leaves=12,
)


@pytest.fixture
def store(tmp_path):
    return wire.ArrayStore(str(tmp_path))


def through(value, store):
    return wire.decode(wire.loads(wire.dumps(wire.encode(value, store))))


@given(PLAIN)
@settings(max_examples=60)
def test_plain_values_come_back(value):
    assert through(value, wire.ArrayStore("/nowhere")) == value


@given(PLAIN)
@settings(max_examples=60)
def test_a_message_is_one_line(value):
    data = wire.dumps(wire.encode(value, wire.ArrayStore("/nowhere")))
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")


@given(
    arrays.arrays(
        st.sampled_from(
            ["bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64", ">f4", "complex64", "U3"]
        ),
        arrays.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3),
    )
)
@settings(max_examples=80)
def test_arrays_come_back_bit_for_bit(tmp_path_factory, array):
    back = through({"a": array}, wire.ArrayStore(str(tmp_path_factory.mktemp("store"))))["a"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_floats_that_json_lacks(store):
    back = through([math.nan, math.inf, -math.inf, np.float32("nan")], store)
    assert math.isnan(back[0])
    assert back[1:3] == [math.inf, -math.inf]
    assert math.isnan(back[3])
    json.loads(wire.dumps(wire.encode([math.nan], store)), parse_constant=pytest.fail)


def test_numpy_scalars_tuples_and_paths_become_plain(store):
    assert through((np.int64(3), np.bool_(True), np.str_("x"), Path("/a")), store) == [3, True, "x", "/a"]


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, {"a": [object()]}, range(3)])
def test_what_cannot_cross_is_refused(store, value):
    with pytest.raises(TypeError, match="cannot cross the process boundary"):
        wire.encode(value, store)


@pytest.mark.parametrize("mark", wire.MARKS)
def test_a_value_cannot_pass_for_an_array(store, mark):
    with pytest.raises(TypeError, match="cannot cross"):
        wire.encode({mark: "/etc/passwd"}, store)


def test_text_arrays_become_unicode(store):
    for array in (np.array(["é", "bc"], object), np.array(["é".encode(), b"bc"], object), np.array(["é", "bc"])):
        back = through(array, store)
        assert back.dtype.kind == "U"
        assert back.tolist() == ["é", "bc"]
    assert through(np.array([b"ab", b"c"]), store).tolist() == ["ab", "c"]
    assert through(np.empty((0, 2), object), store).shape == (0, 2)


@pytest.mark.parametrize("item", [None, 1.0, np.zeros(3)])
def test_other_objects_in_an_array_are_refused(store, item):
    array = np.empty(1, object)
    array[0] = item
    with pytest.raises(TypeError, match="objects of type"):
        wire.encode(array, store)


def test_structured_arrays_are_refused(store):
    with pytest.raises(TypeError, match="structured"):
        wire.encode(np.zeros(2, [("a", "f4"), ("b", "i4")]), store)


def test_arrays_are_mapped_read_only_and_lie_in_the_store(store, tmp_path):
    back = through(np.arange(6.0), store)
    assert isinstance(back, np.memmap)
    assert not back.flags.writeable
    assert Path(back.filename).parent == tmp_path
    assert isinstance(through(np.zeros((0, 3)), store), np.ndarray)


def test_an_array_outside_the_jobs_folder_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    inside = {"$npy": str(tmp_path / "a.npy")}
    assert wire.decode(inside, within=str(tmp_path)).tolist() == [0, 1, 2]
    for within in (tmp_path / "other", tmp_path.parent):
        with pytest.raises(ValueError, match="does not lie in"):
            wire.decode({"x": [inside]}, within=str(within))


def test_damaged_array_files_are_a_value_error(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(1000.0))
    whole = path.read_bytes()
    damaged = {
        "cut header": whole[:60],
        "cut data": whole[:3000],
        "cut magic": whole[:3],
        "empty": b"",
        "other": b"not an array at all",
        "header": whole[:10] + b"{'descr': '<f8', 'fortran_order': (((((".ljust(118) + whole[128:],
        "zip": b"PK\x03\x04" + b"\0" * 100,
        "pickle": whole.replace(b"'<f8'", b"'|O' "),
    }
    for how, data in damaged.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.npy"):
            wire.load_array(str(path))
        assert how
    path.unlink()
    with pytest.raises(ValueError, match="No such file"):
        wire.load_array(str(path))


# -- sharing a whole mapped file ------------------------------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "whole.npy", np.arange(24.0).reshape(4, 6))
    return np.load(tmp_path / "whole.npy", mmap_mode="r")


def test_a_whole_map_is_shared_only_when_asked(mapped, tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    assert wire.ArrayStore(str(folder), share=True).put(mapped) == str(tmp_path / "whole.npy")
    assert not list(folder.iterdir())
    assert Path(wire.ArrayStore(str(folder)).put(mapped)).parent == folder


PARTS = {
    "rows": lambda a: a[1:],
    "first rows": lambda a: a[:3],
    "columns": lambda a: a[:, 2:],
    "steps": lambda a: a[::2],
    "backwards": lambda a: a[::-1],
    "transposed": lambda a: a.T,
    "reshaped": lambda a: a.reshape(6, 4),
    "as integers": lambda a: a.view(np.int64),
    "one row repeated": lambda a: np.broadcast_to(a[:1], (4, 6)),
    "computed": lambda a: a + 0,
    "plain": np.array,
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_map_is_not_the_whole(mapped, part):
    array = PARTS[part](mapped)
    assert wire.whole_file(array) == ""


def test_a_copy_on_write_map_is_not_the_file(tmp_path):
    np.save(tmp_path / "whole.npy", np.arange(4.0))
    array = np.load(tmp_path / "whole.npy", mmap_mode="c")
    array[0] = 7
    assert wire.whole_file(array) == ""


def test_a_raw_map_and_a_lost_file_are_copied(mapped, tmp_path):
    np.arange(4.0).tofile(tmp_path / "raw.bin")
    assert wire.whole_file(np.memmap(tmp_path / "raw.bin", dtype=np.float64, mode="r")) == ""
    (tmp_path / "whole.npy").unlink()
    assert wire.whole_file(mapped) == ""


def test_a_fortran_file_is_shared_as_it_is(tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    array = np.load(tmp_path / "f.npy", mmap_mode="r")
    assert wire.load_array(wire.whole_file(array)).tolist() == array.tolist()
