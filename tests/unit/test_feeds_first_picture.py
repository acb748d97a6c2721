"""One picture of a folder as the example to trace a model with, before the model's shape is known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from trueport import opening
from trueport.errors import UsageError
from trueport.feeds import first_picture


@pytest.fixture
def folder(tmp_path):
    for name, grey in (("b.png", 200), ("a.png", 51)):
        Image.new("RGB", (6, 4), (grey, 0, 255)).save(tmp_path / name)
    return tmp_path


def test_the_first_by_name_with_its_batch_axis(folder):
    picture = first_picture(folder, "size=2x3,scale=1/255,layout=NCHW")
    assert picture.shape == (1, 3, 2, 3)
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture[0, :, 0, 0], [0.2, 0.0, 1.0], atol=1e-6)


def test_the_folders_own_description_is_taken(folder):
    assert first_picture(folder, None) is None, "no shape to derive one from"
    (folder / "preprocess.json").write_text('{"size": [4, 4], "order": "GREY"}')
    assert first_picture(folder, None).shape == (1, 4, 4, 1)


def test_an_empty_folder_gives_none(tmp_path):
    assert first_picture(tmp_path, "size=2x2") is None


def test_a_wrong_description_is_told(folder):
    with pytest.raises(UsageError, match="size"):
        first_picture(folder, "size=0x2")


def test_an_example_without_a_name_is_given_by_position(folder, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    for given in (tmp_path / "x.npy", opening.example_of(folder, "size=2x3")):
        example = opening.example_arrays(given)
        assert isinstance(example, list)
        assert len(example) == 1
        assert example[0].shape[0] == 1
    np.savez(tmp_path / "x.npz", image=np.zeros((4, 3), np.float32))
    assert set(opening.example_arrays(tmp_path / "x.npz")) == {"image"}
    assert opening.example_of(tmp_path / "x.npz", "size=2x3") == tmp_path / "x.npz"
