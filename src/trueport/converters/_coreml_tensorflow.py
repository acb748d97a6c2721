"""A frozen TensorFlow graph as the one thing that coremltools converts without surprises: a concrete function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueport.converters._coreml_interface import Sizes
from trueport.frameworks._base import ConvertContext


def concrete(frozen: Any, names: Mapping[str, str], open_ones: Sizes, context: ConvertContext) -> Any:
    """The function of a frozen graph whose arguments have these names (source name -> name), with these axes open."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(frozen.graph_def, name="")
    specs = []
    for name, tensor in frozen.inputs.items():
        sizes: list[Any] = [int(size) for size in context["example"][name].shape]
        for axis in open_ones.get(name, ()):
            sizes[axis] = None
        specs.append(tf.TensorSpec(sizes, graph.get_tensor_by_name(tensor).dtype, name=names[name]))

    def apply(*arguments: Any) -> list[Any]:
        results = tf.graph_util.import_graph_def(
            frozen.graph_def,
            input_map=dict(zip(frozen.inputs.values(), arguments)),
            return_elements=list(frozen.outputs.values()),
            name="model",  # apart from the arguments
        )
        return [tf.identity(value) for value in results]

    return tf.function(apply, autograph=False).get_concrete_function(*specs)
