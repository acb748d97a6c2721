"""The read-only view of a graph: walks, regions, and two granularities side by side."""

from __future__ import annotations

from trueport.graph import FINE, Graph, Node


def node(name, reads, writes, op="Relu", origin=None):
    return Node(name=name, op=op, inputs=tuple(reads), outputs=tuple(writes), origin=origin)


GRAPH = Graph(
    nodes=(
        node("conv", ["x", "w"], ["a"], "Conv"),
        node("left", ["a"], ["l"]),
        node("right", ["a", ""], ["r", ""]),
        node("sum", ["l", "r"], ["y"], "Add"),
        node("aside", ["a"], ["unused"]),
    ),
    inputs=("x",),
    outputs=("y",),
    constants={"w": {"dtype": "float32", "shape": [1]}},
)


def test_parents_leave_out_constants_and_absent_operands():
    assert GRAPH.parents("a") == ("x",)
    assert GRAPH.parents("r") == ("a",)
    assert GRAPH.parents("x") == ()


def test_children_are_what_readers_compute():
    assert GRAPH.children("a") == ("l", "r", "unused")
    assert GRAPH.children("y") == ()


def test_walks_stop_where_they_are_told_and_neither_return_nor_pass_it():
    assert list(GRAPH.upward(["y"])) == ["y", "l", "r", "a", "x"]
    assert list(GRAPH.upward(["y"], lambda name: name == "a")) == ["y", "l", "r"]
    assert set(GRAPH.downward(["x"])) == {"x", "a", "l", "r", "y", "unused"}
    assert list(GRAPH.upward(["y"], lambda name: name == "y")) == []


def test_the_nearest_of_every_path():
    assert list(GRAPH.nearest("y", lambda name: name in ("l", "a"))) == ["l", "a"]


def test_the_nodes_between_come_in_execution_order():
    assert [item.name for item in GRAPH.between("y", {"a"})] == ["left", "right", "sum"]
    assert [item.name for item in GRAPH.between("a", {"a"})] == []


def test_a_finer_view_stands_beside_the_native_one():
    fine = Graph(
        nodes=(node("mul", ["x", "w"], ["m"], "Mul", "conv"), node("out", ["m"], ["y"], "Add", "sum")),
        inputs=("x",),
        outputs=("y",),
        constants={"w": {"dtype": "float32", "shape": [1]}},
    )
    both = GRAPH.merged(fine)
    assert both.inputs == ("x",)
    assert both.outputs == ("y",)
    assert both.parents(FINE + "m") == ("x",)
    assert both.children(FINE + "m") == (FINE + "y",)
    assert both.by_name[FINE + "mul"].shown == "conv"
    assert both.producer("y").name == "sum"
    assert set(both.constants) == {"w", FINE + "w"}


def test_a_wire_graph_is_read_with_its_origins():
    wire = {
        "nodes": [{"name": "a", "op": "Relu", "native_op": "relu", "inputs": ["x"], "outputs": ["y"], "attributes": {}, "origin": "layer"}],
        "inputs": ["x"],
        "outputs": ["y"],
        "constants": {},
    }  # fmt: skip
    assert Graph.from_wire(wire).nodes[0].shown == "layer"
