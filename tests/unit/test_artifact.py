"""What is said of a file that is no model: which formats there are, what it may be instead, and the cure."""

from __future__ import annotations

import pickle

import pytest

from trueport.artifact import Artifact, offered, sniff
from trueport.errors import UsageError
from trueport.session import formats


def test_the_formats_that_messages_list_are_all_but_the_one_for_tests():
    assert set(offered().split(", ")) == set(formats()) - {"fake"}
    assert offered().split(", ") == sorted(offered().split(", "))


def test_an_unknown_file_is_told_the_formats_and_the_options(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"not a model at all")
    with pytest.raises(UsageError, match=r"known format \(coreml, .*keras, onnx.*--source-format") as told:
        sniff(path)
    assert "fake" not in str(told.value).removeprefix(str(path))


@pytest.mark.parametrize("name", ["net.mlmodel", "net.MLMODEL"])
def test_core_ml_is_known_by_its_version_and_suffix(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x08\x01\x12\x10")
    assert sniff(path) == "coreml"


@pytest.mark.parametrize("name", ["net.mlmodel", "net.mlpackage"])
def test_what_only_bears_a_core_ml_name_is_told_what_it_lacks(tmp_path, name):
    path = tmp_path / name
    if name.endswith("mlpackage"):
        path.mkdir()
        (path / "Manifest.json").write_text("{}")
    else:
        path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(UsageError, match="Core ML file begins with its version") as told:
        sniff(path)
    assert "--source-format" not in str(told.value)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_holds_weights_at_most(tmp_path, protocol):
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps({"weight": [1.0, 2.0]}, protocol=protocol))
    with pytest.raises(UsageError, match=r"pickle, which holds weights at most.*package\.module:factory.*--checkpoint"):
        Artifact.open(path)


@pytest.mark.parametrize("head", [b"\x80\x01", b"\x80\x06", b"\x80"])
def test_what_only_resembles_a_pickle_is_not_called_one(tmp_path, head):
    path = tmp_path / "model.pth"
    path.write_bytes(head + b"rest" if len(head) > 1 else head)
    with pytest.raises(UsageError, match="not a model of a known format") as told:
        sniff(path)
    assert "pickle" not in str(told.value)


def test_an_empty_and_a_missing_file(tmp_path):
    (tmp_path / "model.mlmodel").touch()
    with pytest.raises(UsageError, match="the file is empty"):
        sniff(tmp_path / "model.mlmodel")
    with pytest.raises(UsageError, match="no such file or folder"):
        sniff(tmp_path / "gone.mlpackage")
