"""Documents: strict JSON whatever the numbers, and reading only what is ours."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueport import results
from trueport.errors import UsageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def same(value):
    """What the written form stands for."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, dict):
        return {key: same(item) for key, item in value.items()}
    return [same(item) for item in value] if isinstance(value, list) else value


def refuse(word):
    raise AssertionError(f"{word} is not JSON")


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_every_document_is_strict_json_and_comes_back(document):
    text = results.dumps(document)
    assert text.endswith("\n")
    assert json.loads(text, parse_constant=refuse) == same(document)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.float64("nan"), "NaN"),
        (np.float32("inf"), "Infinity"),
        (-math.inf, "-Infinity"),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(2.0), 2.0),
        ((1, np.float32("-inf")), [1, "-Infinity"]),
        ({3: np.uint8(1)}, {"3": 1}),
    ],
)
def test_numbers_of_numpy_become_plain(value, plain):
    found = results.plain(value)
    assert found == plain
    assert type(found) is type(plain)


def test_text_stays_readable():
    assert "Größe" in results.dumps({"x": "Größe"})


@pytest.mark.parametrize("name", ["verify", "convert", "diagnose", "repair"])
def test_the_schemas_are_schemas_and_refuse_other_documents(name):
    import jsonschema

    schema = results.schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({"format": f"trueport/{name}/1"})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({"format": "trueport/other/1"})


def test_what_schemas_share_they_say_alike():
    """Each schema stands alone, so that a validator needs one file; the copies must not drift apart."""
    convert = results.schema("convert")
    for part in ("verify", "diagnose", "repair"):
        whole = results.schema(part)
        for name, shape in whole["$defs"].items():
            assert convert["$defs"][name] == shape, name
        assert {key: whole[key] for key in convert["$defs"][part]} == convert["$defs"][part]


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "3", "{}", '{"format": "trueport/verify/2"}', "\x00"])
def test_a_file_that_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"r\.json is not a stored result"):
        results.read(path)


@pytest.mark.parametrize("form", results.KINDS)
def test_a_file_that_only_claims_to_be_a_result_is_refused(tmp_path, form):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"format": form}))
    with pytest.raises(UsageError, match="is not a whole stored result"):
        results.read(path)


CAUSES = ("inputs", "parameters", "hyperparameters", "structure", "precision", "runtime", "tool")


def test_the_schema_knows_every_cause():
    from trueport.diagnosis.types import Cause

    assert results.schema("diagnose")["$defs"]["suspect"]["properties"]["cause"]["enum"] == list(Cause) == list(CAUSES)


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("trueport verify 'a b.onnx' c.tflite --seed 0", "trueport diagnose 'a b.onnx' c.tflite --seed 0"),
        ("trueport verify verify diagnose", "trueport diagnose verify diagnose"),
        ("trueport convert verify --to onnx", "trueport convert verify --to onnx"),
    ],
)
def test_a_diagnosis_runs_again_as_one(line, made):
    assert results.diagnosing(line) == made


def test_a_missing_result_is_told(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        results.read(tmp_path / "none.json")
