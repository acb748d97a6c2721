"""Names and layouts over several hops, against arrays that really are renamed and transposed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trueport.lineage import compose

PERMUTATIONS = st.permutations(range(4))


def apply(arrays, declared):
    """What a tool gives that declares this: every array renamed, and transposed where it says so."""
    names, layout = declared.get("names", {}), declared.get("layout", {})
    moved = {entry["source"]: (target, entry["permutation"]) for target, entry in layout.items()}
    given = {}
    for name, array in arrays.items():
        target, permutation = moved.get(name, (names.get(name, name), None))
        given[target] = array if permutation is None else np.transpose(array, permutation)
    return given


def declaration(mapping):
    """{"source": ("target", permutation or None)} in the form in which converters declare it."""
    return {
        "names": {name: target for name, (target, _) in mapping.items() if target != name},
        "layout": {
            target: {"source": name, "permutation": list(permutation)}
            for name, (target, permutation) in mapping.items()
            if permutation is not None
        },
    }


@st.composite
def hops(draw, sources):
    targets = draw(st.permutations([f"{draw(st.sampled_from('xyz'))}{index}" for index in range(len(sources))]))
    keep = [draw(st.booleans()) for _ in sources]
    taken = {name for name, kept in zip(sources, keep, strict=True) if kept}
    return {
        name: (
            name if kept or target in taken or target in sources else target,
            draw(st.one_of(st.none(), PERMUTATIONS)),
        )
        for name, target, kept in zip(sources, targets, keep, strict=True)
    }


@st.composite
def chains(draw):
    sources = ["a", "b"]
    chain = []
    for _ in range(draw(st.integers(1, 4))):
        mapping = draw(hops(sources))
        chain.append(declaration(mapping))
        sources = [target for target, _ in mapping.values()]
    return chain


@given(chains())
@settings(max_examples=300, deadline=None)
def test_a_composition_is_what_the_hops_do_one_after_the_other(chain):
    random = np.random.default_rng(0)
    start = {"a": random.normal(size=(2, 3, 4, 5)), "b": random.normal(size=(3, 2, 5, 4))}
    stepwise, total = start, {}
    for declared in chain:
        stepwise = apply(stepwise, declared)
        total = compose(total, declared)
    at_once = apply(start, total)
    assert at_once.keys() == stepwise.keys()
    for name, array in stepwise.items():
        np.testing.assert_array_equal(at_once[name], array)


def test_two_permutations_are_one():
    first = declaration({"image": ("image", (0, 2, 3, 1))})
    second = declaration({"image": ("pixels", (0, 3, 1, 2))})
    total = compose(compose({}, first), second)
    assert total["names"] == {"image": "pixels"}
    assert total["layout"] == {"pixels": {"source": "image", "permutation": [0, 1, 2, 3]}}


def test_the_last_hop_alone_is_kept_beside_the_whole():
    first = declaration({"image": ("middle", (0, 2, 3, 1))})
    second = declaration({"middle": ("last", None)})
    total = compose(compose({}, first), second)
    assert total["names"] == {"image": "last"}
    assert total["layout"] == {"last": {"source": "image", "permutation": [0, 2, 3, 1]}}
    assert total["direct"] == {"names": {"middle": "last"}, "layout": {}}


def test_nothing_declared_is_nothing():
    assert compose({}, {}) == {"names": {}, "layout": {}, "direct": {"names": {}, "layout": {}}}


def test_what_is_given_is_not_changed():
    before = {"names": {"a": "b"}, "layout": {"b": {"source": "a", "permutation": [1, 0]}}}
    declared = {"names": {"b": "c"}, "layout": {"c": {"source": "b", "permutation": [1, 0]}}}
    copies = repr(before), repr(declared)
    total = compose(before, declared)
    total["layout"]["c"]["permutation"].append(9)
    total["names"]["z"] = "z"
    assert (repr(before), repr(declared)) == copies
