"""The patch script: what stands in it, and what it does with models, places and arrays, without any framework."""

from __future__ import annotations

import ast
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from trueport.artifact import digest
from trueport.frameworks import FRAMEWORKS
from trueport.repairs import _patch_main as runner
from trueport.repairs import patch

EDIT = {"kind": "set-parameter", "node": "conv", "parameter": "w", "array": "a"}
SHA = {"source_sha256": "1" * 64, "result_sha256": "2" * 64}


def variables(script):
    """The values at the top of a script; its whole text must be Python 3.9."""
    tree = ast.parse(script, feature_version=(3, 9))
    found = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            value = statement.value
            inner = value.args[0] if isinstance(value, ast.Call) else value
            found[statement.targets[0].id] = ast.literal_eval(inner)
        elif isinstance(statement, ast.Assign):
            key = statement.targets[0].slice.value
            found["SOURCES"][key] = ast.literal_eval(statement.value)
    return found


# -- what stands in a script ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", patch.LIBRARIES)
def test_a_script_carries_the_writers_of_its_format(format):
    framework = next(one for one in FRAMEWORKS.values() if format in one.FORMATS)
    if not hasattr(framework, "EDIT_FILES"):
        pytest.skip(f"{format} is not edited")
    made = patch.script(format, [([EDIT], {"a": np.ones(3)})], explanation="why", **SHA)
    found = variables(made.script)
    assert list(found["SOURCES"]) == ["_base", *framework.EDIT_FILES, "_patch_main"]
    folder = Path(framework.__file__).parent
    for name in framework.EDIT_FILES:
        assert found["SOURCES"][name] == (folder / f"{name}.py").read_text()
    assert found["FACTS"]["suffix"] == framework.SUFFIXES[format]


def test_edits_are_readable_and_come_back():
    odd = {**EDIT, "node": "it's '''quoted''' \\ and\nbroken", "value": [1, 2.5, None, True, "ü"]}
    made = patch.script(
        "onnx", [([EDIT], {"a": np.ones(3)}), ([odd], {"a": np.zeros(2, np.int64)})], explanation="x", **SHA
    )
    assert '"parameter": "w"' in made.script
    steps = json.loads(variables(made.script)["STEPS"])
    assert [step["edits"] for step in steps] == [[EDIT], [odd]]
    first, second = (step["arrays"]["a"] for step in steps)
    assert first != second


def test_the_explanation_is_above_them_and_cannot_leave_its_comment():
    wanted = 'Wrong: """\nimport os\r\x0bimport os\u2028import os ' + "many words " * 40
    made = patch.script("onnx", [([], {})], explanation=wanted, **SHA)
    head = made.script[: made.script.index("STEPS")]
    assert head.index("# Wrong") > 0
    assert all(line.startswith("# ") for line in head.splitlines() if "import os" in line or "words" in line)
    assert max(map(len, head.splitlines())) <= 120
    assert set(variables(made.script)) == {"STEPS", "FACTS", "ARRAYS", "SOURCES"}


def test_small_arrays_stand_in_the_script_and_large_ones_beside_it():
    small = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array(True)}
    made = patch.script("onnx", [([EDIT], small)], explanation="", **SHA)
    found = variables(made.script)
    assert made.arrays is None
    assert found["FACTS"]["beside"] == ""
    names = json.loads(found["STEPS"])[0]["arrays"]
    facts = facts_of(stored=found["ARRAYS"])
    for key, value in small.items():
        back = runner._arrays(facts, Path("nowhere.py"))[names[key]]
        assert back.dtype == value.dtype
        np.testing.assert_array_equal(back, value)
    large = patch.script("onnx", [([EDIT], {"a": np.arange(patch.SMALL // 8)})], explanation="", **SHA)
    assert variables(large.script)["ARRAYS"] == {}
    assert variables(large.script)["FACTS"]["beside"] == hashlib.sha256(large.arrays).hexdigest()
    with np.load(io.BytesIO(large.arrays)) as stored:
        np.testing.assert_array_equal(stored["array_0"], np.arange(patch.SMALL // 8))
    assert patch.script("onnx", [([EDIT], {"a": np.arange(patch.SMALL // 8)})], explanation="", **SHA) == large


def test_versions_are_told():
    made = patch.script("pytorch", [([], {})], explanation="", versions={"torch": "2.13.0+cpu"}, **SHA)
    assert variables(made.script)["FACTS"]["needs"] == "torch==2.13.0"


def test_what_no_script_can_hold_is_refused():
    with pytest.raises(ValueError, match="no edits are written into files of torchscript"):
        patch.script("torchscript", [], explanation="", **SHA)
    with pytest.raises(ValueError, match="array 'a' of type object"):
        patch.script("onnx", [([EDIT], {"a": np.array([None])})], explanation="", **SHA)


# -- what a script does -----------------------------------------------------------------------------------------------


def facts_of(**other):
    known = {
        "format": "onnx", "suffix": ".onnx", "library": "numpy", "needs": "numpy", "source": "", "result": "",
        "steps": [], "stored": {}, "beside": "",
    }  # fmt: skip
    return runner.Facts(**{**known, **other})


def append(path, edits, arrays, out):
    """An edit that puts a text behind the file, and the sums of arrays."""
    text = Path(path).read_text()
    Path(out).write_text(
        text + "".join(edit["text"] for edit in edits) + "".join(str(a.sum()) for a in arrays.values())
    )
    return {"notes": ["it is longer now"]}


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    return path


def steps(*texts):
    return [{"edits": [{"text": text}], "arrays": {}} for text in texts]


def call(facts, *arguments, apply=append, script="patch.py"):
    return runner.main(facts, str(script), lambda: apply, [str(one) for one in arguments])


def left(folder):
    return sorted(item.name for item in folder.iterdir())


def test_steps_are_applied_one_after_the_other(model, tmp_path, capsys):
    facts = facts_of(source=sha("old"), result=sha("old+1+2"), steps=steps("+1", "+2"))
    assert call(facts, model, tmp_path / "out.onnx") == 0
    assert (tmp_path / "out.onnx").read_text() == "old+1+2"
    assert model.read_text() == "old"
    assert left(tmp_path) == ["model.onnx", "out.onnx"]
    said = capsys.readouterr().out
    assert "the expected result" in said
    assert "it is longer now" in said


def test_another_model_is_refused_unless_forced(model, tmp_path, capsys):
    facts = facts_of(source=sha("other"), result=sha("other+1"), steps=steps("+1"))
    assert call(facts, model, tmp_path / "out.onnx") == 2
    assert left(tmp_path) == ["model.onnx"]
    said = capsys.readouterr().err
    assert "is not the model that this patch was made for" in said
    assert "--force" in said
    assert call(facts, model, tmp_path / "out.onnx", "--force") == 1
    assert (tmp_path / "out.onnx").read_text() == "old+1"
    assert "another one" in capsys.readouterr().err


def test_other_bytes_than_expected_are_told(model, tmp_path, capsys):
    facts = facts_of(source=sha("old"), result=sha("something"), steps=steps("+1"), needs="numpy==1.0")
    assert call(facts, model, tmp_path / "out.onnx") == 1
    assert "made with numpy==1.0; another version" in capsys.readouterr().err
    assert (tmp_path / "out.onnx").read_text() == "old+1"


def test_only_the_model_that_was_trusted_is_trusted(model, tmp_path):
    trusted = []

    def apply(path, edits, arrays, out, *, trust):
        trusted.append(trust)
        return append(path, edits, arrays, out)["notes"]

    facts = facts_of(source=sha("old"), result=sha("old"), steps=steps("", ""))
    assert call(facts, model, tmp_path / "a.onnx", apply=apply) == 0
    call(facts._replace(source="0"), model, tmp_path / "b.onnx", "--force", apply=apply)
    assert trusted == [True, True, False, False]


def test_places_where_nothing_may_be_written(model, tmp_path, capsys):
    facts = facts_of(source=sha("old"), steps=steps("+1"))
    (tmp_path / "folder").mkdir()
    for out, word in (
        (model, "is the model itself"),
        (tmp_path / "folder", "give a new name"),
        (tmp_path / "none" / "out.onnx", "is no folder"),
    ):
        assert call(facts, model, out) == 2
        assert word in capsys.readouterr().err
    assert call(facts, tmp_path / "absent.onnx", tmp_path / "out.onnx") == 2
    assert "no such file" in capsys.readouterr().err
    assert left(tmp_path) == ["folder", "model.onnx"]
    assert model.read_text() == "old"


def test_a_file_that_stood_there_is_replaced_only_by_a_whole_one(model, tmp_path):
    out = tmp_path / "out.onnx"
    out.write_text("before")

    def fail(path, edits, arrays, made):
        Path(made).write_text("half")
        raise RuntimeError("the disk is full\nand more")

    facts = facts_of(source=sha("old"), result=sha("old+1"), steps=steps("+1"))
    assert call(facts, model, out, apply=fail) == 2
    assert out.read_text() == "before"
    assert left(tmp_path) == ["model.onnx", "out.onnx"]
    assert call(facts, model, out) == 0
    assert out.read_text() == "old+1"


def test_folders(tmp_path, capsys):
    model, out = tmp_path / "saved", tmp_path / "mended"
    (model / "variables").mkdir(parents=True)
    (model / "variables" / "v").write_text("1")

    def apply(path, edits, arrays, made):
        (Path(made) / "variables").mkdir(parents=True)
        (Path(made) / "variables" / "v").write_text("2")

    facts = facts_of(format="savedmodel", suffix="", source=digest(model), steps=steps(""))
    assert runner.digest(model) == digest(model)
    assert call(facts, model, model / "inner", apply=apply) == 2
    assert "lies in the model" in capsys.readouterr().err
    assert call(facts, model, out, apply=apply) == 1  # no digest is expected here
    assert (out / "variables" / "v").read_text() == "2"
    assert call(facts, model, out, apply=apply) == 2
    assert (model / "variables" / "v").read_text() == "1"


def test_weights_beside_the_model_go_along_and_replace_nothing(model, tmp_path, capsys):
    def apply(path, edits, arrays, made):
        Path(made).write_text("new")
        Path(made).with_name("weights.bin").write_text("numbers")

    facts = facts_of(source=sha("old"), result=sha("new"), steps=steps(""))
    (tmp_path / "there").mkdir()
    assert call(facts, model, tmp_path / "there" / "out.onnx", apply=apply) == 0
    assert left(tmp_path / "there") == ["out.onnx", "weights.bin"]
    assert call(facts, model, tmp_path / "there" / "again.onnx", apply=apply) == 0
    (tmp_path / "weights.bin").write_text("of another model")
    assert call(facts, model, tmp_path / "out.onnx", apply=apply) == 2
    assert "in the way" in capsys.readouterr().err
    assert (tmp_path / "weights.bin").read_text() == "of another model"
    assert left(tmp_path) == ["model.onnx", "there", "weights.bin"]


def test_the_file_of_arrays_is_checked(model, tmp_path, capsys):
    made = patch.script("onnx", [([{"text": "+"}], {"a": np.ones(patch.SMALL // 8 + 1)})], explanation="", **SHA)
    found = variables(made.script)
    facts = facts_of(source=sha("old"), steps=json.loads(found["STEPS"]), beside=found["FACTS"]["beside"])
    script = tmp_path / "mend.py"
    assert call(facts, model, tmp_path / "out.onnx", script=script) == 2
    assert "mend.npz is missing" in capsys.readouterr().err
    (tmp_path / "mend.npz").write_bytes(made.arrays[:-1])
    assert call(facts, model, tmp_path / "out.onnx", script=script) == 2
    assert "was changed" in capsys.readouterr().err
    (tmp_path / "mend.npz").write_bytes(made.arrays)
    assert call(facts._replace(result=sha("old+125001.0")), model, tmp_path / "out.onnx", script=script) == 0


def test_a_missing_library_is_named(model, tmp_path, capsys):
    facts = facts_of(source=sha("old"), steps=steps("+1"), library="no_such_library", needs="no-such-library==1.0")
    assert call(facts, model, tmp_path / "out.onnx") == 2
    assert "needs no-such-library==1.0" in capsys.readouterr().err
