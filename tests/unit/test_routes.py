"""Which routes there are, in which order, with which options; and what is said about those that there are not."""

from __future__ import annotations

from itertools import pairwise

import pytest

from trueport import routes
from trueport.errors import UsageError
from trueport.frameworks._base import Step
from trueport.routes import MAX_HOPS, Hop, Route, lower_opset, parse_options, parse_route, plan, steps
from trueport.session import formats


def step(name, source, target, **more):
    return Step(name=name, source_format=source, target_format=target, toolchain="t", tool="t", **more)


@pytest.fixture
def world(monkeypatch):
    """world(step, ...) replaces every known step."""

    def set_steps(*some):
        monkeypatch.setattr(routes, "steps", lambda: {item.name: item for item in some})

    return set_steps


REAL = [(a, b) for a in formats() for b in formats() if a != b and "fake" not in (a, b)]


@pytest.mark.parametrize(("source", "target"), REAL, ids=lambda value: value)
def test_every_real_route_chains_visits_no_format_twice_and_is_short(source, target):
    found = plan(source, target)
    for one in found:
        visited = [source, *(hop.step.target_format for hop in one.hops)]
        assert len(visited) == len(set(visited))
        assert visited[-1] == target
        assert len(one.hops) <= MAX_HOPS
        assert not any(hop.step.source_format == hop.step.target_format for hop in one.hops)
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    assert len({one.name for one in found}) == len(found)


def test_the_formats_of_the_issue_reach_each_other():
    for source in ("pytorch", "keras", "savedmodel", "onnx"):
        for target in ("onnx", "tflite"):
            if source != target:
                assert plan(source, target), f"{source} to {target}"


def test_fewer_hops_come_first_then_reliability_then_the_name(world):
    world(
        step("slow", "a", "b", rank=90),
        step("quick", "a", "b", rank=10),
        step("alike", "a", "b", rank=10),
        step("a-c", "a", "c", rank=1),
        step("c-b", "c", "b", rank=1),
    )
    assert [one.name for one in plan("a", "b")] == ["alike", "quick", "slow", "a-c,c-b"]


def test_no_route_is_longer_than_the_limit(world):
    names = "abcde"
    world(*(step(f"{x}-{y}", x, y) for x, y in pairwise(names)))
    assert MAX_HOPS == 3
    assert [one.name for one in plan("a", "d")] == ["a-b,b-c,c-d"]
    assert plan("a", "e") == ()


def test_passes_within_a_format_are_no_way_to_another(world):
    world(step("pass", "a", "a"), step("a-b", "a", "b"), step("b-pass", "b", "b"))
    assert [one.name for one in plan("a", "b")] == ["a-b"]
    assert [one.name for one in plan("a", "a")] == ["pass"]


def test_circles_end(world):
    world(step("a-b", "a", "b"), step("b-a", "b", "a"), step("b-c", "b", "c"))
    assert [one.name for one in plan("a", "c")] == ["a-b,b-c"]


def test_a_precision_goes_to_the_last_step_that_can_give_it(world):
    both = ("float32", "int8")
    world(step("a-b", "a", "b", precisions=both), step("b-c", "b", "c", precisions=both), step("c-d", "c", "d"))
    (found,) = plan("a", "d", precision="int8")
    assert [dict(hop.options) for hop in found.hops] == [{}, {"precision": "int8"}, {}]
    assert plan("a", "d", precision="float16") == ()
    (plain,) = plan("a", "d")
    assert all(not hop.options for hop in plain.hops)


def test_routes_that_cannot_give_the_precision_are_left_out(world):
    world(step("plain", "a", "b", rank=1), step("able", "a", "b", rank=99, precisions=("float32", "float16")))
    assert [one.name for one in plan("a", "b", precision="float16")] == ["able"]


def test_a_precision_that_the_user_placed_stays_where_it_is(world):
    both = ("float32", "int8")
    world(step("a-b", "a", "b", precisions=both), step("b-c", "b", "c", precisions=both))
    (found,) = plan("a", "c", precision="int8", options={"a-b": {"precision": "int8"}})
    assert [dict(hop.options) for hop in found.hops] == [{"precision": "int8"}, {}]


def test_keras_2_files_take_their_own_steps_only(world):
    world(
        step("new", "keras", "b"),
        step("old", "keras", "b", legacy_keras=True),
        step("x-keras", "x", "keras"),
    )
    assert [one.name for one in plan("keras", "b")] == ["new"]
    assert [one.name for one in plan("keras", "b", legacy_keras=True)] == ["old"]
    assert [one.name for one in plan("x", "b")] == ["x-keras,new"], "a step on the way makes Keras 3 files"


def test_the_real_keras_steps_are_of_both_kinds():
    new, old = plan("keras", "tflite"), plan("keras", "tflite", legacy_keras=True)
    assert new
    assert old
    assert all(not one.hops[0].step.legacy_keras for one in new)
    assert all(one.hops[0].step.legacy_keras for one in old)


@pytest.mark.parametrize(
    ("opset", "inserted"),
    [(19, True), (18, True), (17, False), (9, False), (None, False), ("18", False), (17.5, False)],
)
def test_the_opset_is_lowered_only_where_the_step_needs_it(opset, inserted):
    found = lower_opset(Hop(step=step("x", "onnx", "b", max_opset=17)), opset)
    assert (found is not None) == inserted
    if found is not None:
        assert found.step.name == routes.OPSET_STEP
        assert found.options == {"opset": "17"}


def test_a_step_without_a_limit_never_needs_another_opset():
    assert lower_opset(Hop(step=step("x", "onnx", "b")), 99) is None


def test_the_opset_step_takes_what_is_given_to_it():
    known = steps()[routes.OPSET_STEP]
    assert known.source_format == known.target_format == "onnx"
    assert "opset" in dict(known.options)


def test_a_route_must_chain():
    with pytest.raises(UsageError, match="does not chain: a-b gives b, c-d takes c"):
        Route(hops=(Hop(step=step("a-b", "a", "b")), Hop(step=step("c-d", "c", "d"))))
    with pytest.raises(UsageError, match="at least one step"):
        Route(hops=())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "no conversion step 'nonsense'.*trueport routes"),
        ("", "no conversion step ''"),
        ("fake-copy,", "no conversion step ''"),
        ("tf2onnx-keras,tf2onnx-keras", "does not chain"),
    ],
)
def test_a_wrong_route_is_told(text, says):
    with pytest.raises(UsageError, match=says):
        parse_route(text)


def test_a_forced_route_must_give_the_precision():
    with pytest.raises(UsageError, match="no step of the route fake-copy can give the precision 'int8'"):
        parse_route("fake-copy", precision="int8")
    assert parse_route(" fake-copy , fake-copy ", precision="float16").hops[1].options == {"precision": "float16"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fake-copy", "takes STEP.key=value"),
        ("fake-copy.misbehave", "takes STEP.key=value"),
        ("misbehave=nan", "takes STEP.key=value"),
        (".misbehave=nan", "takes STEP.key=value"),
        ("fake-copy.=nan", "takes STEP.key=value"),
        ("no-step.misbehave=nan", "no conversion step 'no-step'"),
        ("fake-copy.wrong=nan", "takes no option 'wrong'; it takes misbehave, precision"),
        ("fake-copy.precision=int3", "cannot give the precision 'int3'; it gives float32, float16"),
    ],
)
def test_a_wrong_option_is_told(text, says):
    with pytest.raises(UsageError, match=says):
        parse_options([text])


def test_options_are_read_and_reach_their_step():
    options = parse_options(["fake-copy.misbehave=a=b,c", "fake-copy.precision=float16"])
    assert options == {"fake-copy": {"misbehave": "a=b,c", "precision": "float16"}}
    assert parse_route("fake-copy", options=options).hops[0].options == options["fake-copy"]
    assert plan("fake", "fake", options=options)[0].hops[0].options == options["fake-copy"]


def test_step_names_are_unique_and_can_be_typed():
    from trueport.converters import CONVERTERS

    names = [one.name for module in CONVERTERS.values() for one in module.STEPS]
    assert len(names) == len(set(names))
    assert not [name for name in names if "," in name or "." in name or "=" in name or name != name.strip()]
