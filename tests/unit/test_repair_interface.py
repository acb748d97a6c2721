"""What a target takes and gives, made the source's: which sizes and outputs are proposed, and in which order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from trueport.artifact import Artifact, Signature, TensorSpec
from trueport.outcome import Failure, Kind, Ok, Stage
from trueport.repairs import interface


def signature(*shapes, outputs=("y",)):
    return Signature(
        inputs=tuple(TensorSpec(name=f"x{n}", dtype="float32", shape=shape) for n, shape in enumerate(shapes)),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=None) for name in outputs),
    )


def proposed(ours, theirs, *, paired=("y",), surplus=(), refused=False):
    loaded = theirs if isinstance(theirs, Failure) else Ok(theirs)
    reference = SimpleNamespace(session=SimpleNamespace(signature=lambda artifact: loaded), signature=ours)
    comparison = SimpleNamespace(
        outputs=[SimpleNamespace(target=name) for name in paired], unpaired_target=tuple(surplus)
    )
    found = interface.proposals(reference, None, SimpleNamespace(comparison=comparison), refused=refused)
    if isinstance(found, str):
        return found
    assert [one.doubt for one in found] == sorted(one.doubt for one in found)
    assert all(len(one.edits) == 1 and one.edits[0].rule == interface.NAME for one in found)
    return [one.edits[0].change for one in found]


def sizes(changes):
    return [(change["value"], change["shape"]) for change in changes]


@pytest.mark.parametrize(
    ("source", "target", "wanted"),
    [
        ((1, 3, 8, 8), (1, 3, 16, 8), [1, 3, 8, 8]),
        (("n", 3, 8, 10), ("n", 3, 10, 8), ["n", 3, 8, 10]),
        (("n", 3, 8, 8), ("m", 8, 9, 3), ["n", 8, 8, 3]),
        ((4, 3, 8, 8), (2, 8, 8, 3), [4, 8, 8, 3]),
        ((1, 24, 7), (1, 7, 12), [1, 7, 24]),
        ((2, 6), (1, 6), [2, 6]),
    ],
)
def test_sizes_are_set_in_the_layout_that_is_nearest(source, target, wanted):
    assert sizes(proposed(signature(source), signature(target)))[0] == ("x0", wanted)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1, 3, 8, 8), (1, 3, 8, 8)),
        (("n", 3, 8, 8), (None, 3, 8, 8)),
        ((1, 3, 8, 8), (1, 8, 8, 3)),
        ((1, 3, 8, 8), (3, 8, 8)),
        ((1, 3, 8, 8), (5, 6, 7, 9)),
        (None, (1, 3)),
        ((1, 3), None),
    ],
)
def test_right_sizes_other_ranks_and_other_models_are_left_alone(source, target):
    assert proposed(signature(source), signature(target)) == "inputs and outputs are those of the source"


def test_sizes_in_another_layout_are_doubted_only_where_the_target_does_not_run():
    ours, theirs = signature((1, 3, 8, 8)), signature((1, 8, 8, 3))
    assert sizes(proposed(ours, theirs, refused=True))[0] == ("x0", [1, 3, 8, 8])


def test_only_the_input_that_differs_is_changed():
    changes = proposed(signature((1, 6), (1, 9)), signature((1, 6), (1, 8)))
    assert sizes(changes) == [("x1", [1, 9])]


def test_another_number_of_inputs_says_nothing_about_sizes():
    assert isinstance(proposed(signature((1, 6), (1, 9)), signature((1, 8))), str)


@pytest.mark.parametrize(
    ("now", "paired", "surplus", "wanted"),
    [
        (("s", "y"), ("y",), ("s",), ["y"]),
        (("b", "s", "a"), ("a", "b"), ("s",), ["a", "b"]),
    ],
)
def test_outputs_that_the_source_has_not_are_left_out(now, paired, surplus, wanted):
    ours = signature((1, 6), outputs=paired)
    changes = proposed(ours, signature((1, 6), outputs=now), paired=paired, surplus=surplus)
    assert changes == [{"kind": "set-outputs", "outputs": wanted}]


@pytest.mark.parametrize(("paired", "surplus"), [(("y",), ()), ((), ("y",))])
def test_outputs_stay_where_none_is_too_many_or_none_is_known(paired, surplus):
    assert isinstance(proposed(signature((1, 6)), signature((1, 6)), paired=paired, surplus=surplus), str)


def test_a_target_that_does_not_load_has_no_interface():
    failure = Failure(stage=Stage.LOAD, kind=Kind.RAISED, message="no such operator")
    assert proposed(signature((1, 6)), failure) == "the target does not load: no such operator"


def test_what_people_read_names_both_sides():
    reference = SimpleNamespace(
        session=SimpleNamespace(signature=lambda artifact: Ok(signature((1, 3, 16, 8)))),
        signature=signature((1, 3, 8, 8)),
    )
    verification = SimpleNamespace(comparison=SimpleNamespace(outputs=[], unpaired_target=()))
    artifact = Artifact(path=None, format="onnx", sha256="", size=0)
    edit = interface.proposals(reference, artifact, verification)[0].edits[0]
    assert (edit.where, edit.before, edit.after) == ("x0", "[1, 3, 16, 8]", "[1, 3, 8, 8]")
    assert "x0" in edit.reason
