"""Decides how exported JAX functions leave JAX: as a SavedModel by TensorFlow's own operator for StableHLO, and as ONNX.

The SavedModel holds the program whole, in one `XlaCallModule`, rewritten to the StableHLO version that this TensorFlow
reads; the TFLite converter takes it apart again. For ONNX the program is run operator by operator under jax2onnx, which
writes down what it sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueport.frameworks._base import ConvertContext, ConvertReply, InvalidOutput, Step, Unsupported

STEPS: tuple[Step, ...] = (
    Step(
        name="jax-savedmodel",
        source_format="jax",
        target_format="savedmodel",
        toolchain="jax-tensorflow",
        tool="jax",
        rank=20,
        note="the SavedModel holds the program as one operator, which the TFLite converter reads and tf2onnx does not",
    ),
    Step(
        name="jax2onnx",
        source_format="jax",
        target_format="onnx",
        toolchain="jax2onnx",
        tool="jax2onnx",
        rank=20,
        options=(("opset", "ONNX opset of the result (default 21)"),),
        note="loops whose length depends on values are not taken",
    ),
)
OPSET = 21
STABLEHLO = ("1.13.0", "1.11.0", "1.9.0", "1.5.0", "1.0.0")
"""Versions of StableHLO to write for TensorFlow, newest first: 2.21 reads up to 1.13."""


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the SavedModel folder or the ONNX file at `out`. Raises Unsupported, InvalidOutput."""
    return _onnx(source, out, options) if step == "jax2onnx" else _savedmodel(source, out)


# -- SavedModel


def _savedmodel(source: str, out: str) -> ConvertReply:
    import tensorflow as tf

    from trueport.frameworks import _jax_program as programs
    from trueport.frameworks import tensorflow as savedmodels
    from trueport.frameworks._keras_model import safe_names

    program = programs.load(source)
    safe = dict(zip([spec["name"] for spec in program.inputs], safe_names([s["name"] for s in program.inputs])))
    made = [spec["name"] for spec in program.outputs]
    safe_out = dict(zip(made, safe_names(made)))
    specs = {
        safe[spec["name"]]: tf.TensorSpec(_sizes(spec), spec["dtype"], name=safe[spec["name"]])
        for spec in program.inputs
    }
    problem = ""
    for version in STABLEHLO:
        try:
            module = _rewritten(program.exported, version)
        except Exception as error:  # noqa: BLE001 -- an operator newer than this version; an older one is tried
            problem = str(error).splitlines()[0][:200]
            continue
        _save(program, module, list(safe.values()), list(safe_out.values()), specs, out)
        saved = savedmodels.load(out, trust=True)
        if set(saved.inputs) != set(safe.values()):
            raise InvalidOutput(f"the SavedModel takes {', '.join(saved.inputs)} instead of {', '.join(safe.values())}")
        renamed = {name: new for name, new in [*safe.items(), *safe_out.items()] if name != new}
        return ConvertReply(notes=[f"written as StableHLO {version}, in one operator"], names=renamed)
    raise Unsupported(f"the program cannot be written in a version of StableHLO that TensorFlow reads ({problem})")


def _sizes(spec: Any) -> list[Any]:
    return [size if isinstance(size, int) else None for size in spec["shape"]]


def _rewritten(exported: Any, version: str) -> bytes:
    """The program in another version of StableHLO, without JAX's checks of sizes, which older versions lack."""
    from jax._src.interpreters.mlir import make_ir_context
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo

    with make_ir_context():
        module = ir.Module.parse(exported.mlir_module())
        checks = [
            item.operation
            for function in module.body.operations
            for item in function.regions[0].blocks[0].operations
            if item.operation.name == "stablehlo.custom_call"
            and item.operation.attributes["call_target_name"].value == "shape_assertion"
        ]
        for check in checks:
            check.erase()
        return bytes(stablehlo.serialize_portable_artifact(module, version))


def _save(program: Any, module: bytes, inputs: Any, outputs: Any, specs: Any, out: str) -> None:
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python import xla

    exported = program.exported
    kept = [inputs[index] for index in exported.module_kept_var_idx]

    def apply(**given: Any) -> dict[str, Any]:
        results = xla.call_module(
            [given[name] for name in kept],
            version=exported.calling_convention_version,
            module=module,
            Sout=[_sizes(spec) for spec in program.outputs],
            Tout=[spec["dtype"] for spec in program.outputs],
            platforms=["CPU"],
            function_list=[],
            has_token_input_output=False,
            disabled_checks=[],
        )
        return {name: tf.identity(value, name=name) for name, value in zip(outputs, results)}

    holder = tf.Module()
    holder.apply = tf.function(apply, autograph=False)
    concrete = holder.apply.get_concrete_function(**specs)
    tf.saved_model.save(holder, out, signatures={"serving_default": concrete})


# -- ONNX


def _onnx(source: str, out: str, options: Mapping[str, Any]) -> ConvertReply:
    import jax
    import jax2onnx
    import numpy as np
    import onnx

    from trueport.frameworks import _jax_ops as operators
    from trueport.frameworks import _jax_program as programs
    from trueport.frameworks import _jax_sizes as sizes

    text = str(options.get("opset", OPSET))
    if not text.isdigit():
        raise ValueError(f"option opset takes a number, not '{text}'")
    program = programs.load(source)
    names = [spec["name"] for spec in program.inputs]
    outputs = [spec["name"] for spec in program.outputs]

    def function(*given: Any) -> tuple[Any, ...]:
        env = dict(zip(names, given))
        evaluator = operators.Evaluator(program.constants, sizes.symbols_of(program.inputs, env))
        for op in program.body.ops:
            env.update(zip(op.outputs, evaluator.step(op, env)))
        return tuple(env[name] for name in outputs)

    specs = [jax.ShapeDtypeStruct(tuple(spec["shape"] or ()), np.dtype(spec["dtype"])) for spec in program.inputs]
    try:
        model = jax2onnx.to_onnx(
            function, specs, model_name="model", opset=int(text), input_names=names, output_names=outputs
        )
    except NotImplementedError as error:
        raise Unsupported(f"jax2onnx: {(str(error).splitlines() or ['not implemented'])[0][:300]}") from error
    _lower_pools(model)
    onnx.checker.check_model(model)
    for kind, items, wanted in (("inputs", model.graph.input, names), ("outputs", model.graph.output, outputs)):
        if [item.name for item in items] != wanted:
            found = ", ".join(item.name for item in items)
            raise InvalidOutput(f"jax2onnx wrote the {kind} {found} for {', '.join(wanted)}")
    onnx.save(model, out)
    return ConvertReply(notes=[], names={})


def _lower_pools(model: Any) -> None:
    """Rewrite pools over all axes, as jax2onnx leaves them, into pools over the axes that have a window.

    ONNX Runtime pools over three axes at most, and behind a batch and a channel axis only.
    """
    from onnx import helper

    graph = model.graph
    for pool in [node for node in graph.node if node.op_type in ("MaxPool", "AveragePool")]:
        at = {item.name: helper.get_attribute_value(item) for item in pool.attribute}
        kernel = list(at["kernel_shape"])
        rank = len(kernel)
        if rank < 4:
            continue
        neutral = {"strides": [1] * rank, "dilations": [1] * rank, "pads": [0] * (2 * rank)}
        lists = {name: list(at.get(name, value)) for name, value in neutral.items()}
        pads = list(zip(lists["pads"][:rank], lists["pads"][rank:]))
        windows = [axis for axis in range(rank) if (kernel[axis], lists["strides"][axis], pads[axis]) != (1, 1, (0, 0))]
        source, result = _bare(graph, pool)
        if not 1 <= len(windows) <= 3 or rank - len(windows) != 2 or source is None or result is None:
            raise Unsupported(f"jax2onnx writes '{pool.name}' as a pool over {rank} axes, which ONNX Runtime lacks")
        order = [axis for axis in range(rank) if axis not in windows] + windows
        settings = {name: [values[axis] for axis in windows] for name, values in lists.items() if name != "pads"}
        settings["pads"] = [pads[axis][side] for side in (0, 1) for axis in windows]
        kept = {name: value for name, value in at.items() if name in ("ceil_mode", "count_include_pad")}
        moved, made = f"{pool.name}_moved", f"{pool.name}_made"
        nodes = [
            helper.make_node("Transpose", [source], [moved], perm=order),
            helper.make_node(
                pool.op_type,
                [moved],
                [made],
                name=pool.name,
                kernel_shape=[kernel[a] for a in windows],
                **settings,
                **kept,
            ),
            helper.make_node("Transpose", [made], [result], perm=[order.index(axis) for axis in range(rank)]),
        ]
        place = list(graph.node).index(pool)
        _drop(graph, result)
        place = min(place, len(graph.node))
        for node in reversed(nodes):
            graph.node.insert(place, node)
        _drop_unused(graph)


def _bare(graph: Any, pool: Any) -> tuple[str | None, str | None]:
    """What a pool reads and gives, behind the two axes that jax2onnx puts in front and takes away again."""
    makers = {name: node for node in graph.node for name in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    source, result = pool.input[0], pool.output[0]
    while source in makers and makers[source].op_type == "Unsqueeze":
        source = makers[source].input[0]
    while result in readers and readers[result].op_type == "Squeeze":
        result = readers[result].output[0]
    return (source, result) if source != pool.input[0] and result != pool.output[0] else (None, None)


def _drop(graph: Any, result: str) -> None:
    """Remove the node that gives this value."""
    graph.node.remove(next(node for node in graph.node if result in node.output))


def _drop_unused(graph: Any) -> None:
    """Remove nodes that nobody reads."""
    while True:
        read = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
        idle = [node for node in graph.node if not any(name in read for name in node.output)]
        if not idle:
            return
        for node in idle:
            graph.node.remove(node)
