"""ML programs for the tests of the evaluator, made by coremltools inside a worker: build(name, folder) -> path."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _tools():
    logging.disable(logging.WARNING)
    import coremltools
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    return coremltools, Builder, types


def _program(body, specs, target="iOS16", precision="FLOAT32", **options):
    """Convert a function of the builder. specs: shapes, or (shape, type name)."""
    tools, builder, types = _tools()
    inputs = []
    for item in specs:
        shape, kind = item if isinstance(item[0], tuple) else (item, "fp32")
        inputs.append(builder.TensorSpec(shape=shape, dtype=getattr(types, kind)))
    made = builder.program(input_specs=inputs, opset_version=getattr(tools.target, target))(body(builder))
    return tools.convert(
        made,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(tools.target, target),
        compute_precision=getattr(tools.precision, precision),
        **options,
    )


def _network(builder):
    def prog(x):
        kernel, bias = weights(8, 3, 3, 3), weights(8, seed=1)
        hidden = builder.conv(x=x, weight=kernel, bias=bias, pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2])
        hidden = builder.relu(x=hidden, name="hidden")
        mean = builder.reduce_mean(x=hidden, axes=[2, 3], name="mean")
        out = builder.linear(x=mean, weight=weights(5, 8, seed=2), bias=weights(5, seed=3), name="scores")
        return builder.softmax(x=out, axis=-1, name="y")

    return prog


def network():
    return _program(_network, [(1, 3, 8, 8)])


def half():
    return _program(_network, [(1, 3, 8, 8)], precision="FLOAT16")


def classifier():
    tools, *_ = _tools()
    labels = [f"class {number}" for number in range(5)]
    return _program(_network, [(1, 3, 8, 8)], classifier_config=tools.ClassifierConfig(labels))


def image():
    tools, *_ = _tools()
    kind = tools.ImageType(name="x", shape=(1, 3, 8, 8), scale=1 / 127.5, bias=[-1, -1, -1], color_layout="BGR")
    return _program(_network, [(1, 3, 8, 8)], inputs=[kind])


def ranged():
    tools, *_ = _tools()
    return _traced(tools.Shape(shape=(tools.RangeDim(1, 6, default=2), 4)))


def enumerated():
    tools, *_ = _tools()
    return _traced(tools.EnumeratedShapes(shapes=[[1, 4], [3, 4]], default=[1, 4]))


def _traced(shape):
    import torch

    tools, *_ = _tools()
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh()).eval()
    traced = torch.jit.trace(net, torch.rand(1, 4))
    return tools.convert(
        traced,
        inputs=[tools.TensorType(name="x", shape=shape)],
        outputs=[tools.TensorType(name="y")],
        convert_to="mlprogram",
        compute_precision=tools.precision.FLOAT32,
        minimum_deployment_target=tools.target.iOS16,
    )


def embedding():
    def body(builder):
        def prog(x):
            found = builder.gather(x=weights(7, 4), indices=builder.identity(x=x), axis=0)
            return builder.reduce_sum(x=found, axes=[1], name="y")

        return prog

    return _program(body, [((2, 3), "int32")])


def loop():
    """Doubles x until its sum reaches 100, and counts; then takes one branch or the other."""

    def body(builder):
        def prog(x):
            def less(value, count):
                return builder.less(x=builder.reduce_sum(x=value, axes=[0], keep_dims=False), y=np.float32(100))

            def step(value, count):
                return builder.mul(x=value, y=np.float32(2)), builder.add(x=count, y=np.float32(1))

            value, count = builder.while_loop(_cond=less, _body=step, loop_vars=(x, np.float32(0)))
            shifted = builder.add(x=value, y=np.float32(1), name="shifted")
            odd = builder.greater(x=builder.mod(x=count, y=np.float32(2)), y=np.float32(0.5))
            return builder.cond(
                pred=odd,
                _true_fn=lambda: builder.mul(x=shifted, y=np.float32(-1)),
                _false_fn=lambda: builder.identity(x=shifted),
                name="y",
            )

        return prog

    return _program(body, [(2,)])


def lists():
    def body(builder):
        def prog(x):
            held = builder.make_list(init_length=2, elem_shape=(2,), dynamic_length=False)
            held = builder.list_write(ls=held, index=0, value=builder.slice_by_index(x=x, begin=[0], end=[2]))
            held = builder.list_write(ls=held, index=1, value=builder.slice_by_index(x=x, begin=[2], end=[4]))
            return builder.list_gather(ls=held, indices=[1, 0], name="y")

        return prog

    return _program(body, [(4,)])


def state():
    """Adds x to a state twice, and gives the sum of what it held after each time."""
    import warnings

    import torch

    tools, *_ = _tools()

    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x):
            self.total.add_(x)
            first = self.total * 1.0
            self.total.add_(x)
            return first + self.total

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer runs it twice, and the state goes on
        traced = torch.jit.trace(Sum().eval(), torch.rand(3))
    held = tools.StateType(wrapped_type=tools.TensorType(shape=(3,)), name="total")
    return tools.convert(
        traced,
        inputs=[tools.TensorType(name="x", shape=(3,))],
        outputs=[tools.TensorType(name="y")],
        states=[held],
        convert_to="mlprogram",
        minimum_deployment_target=tools.target.iOS18,
    )


def random():
    def body(builder):
        def prog(x):
            drawn = builder.random_normal(shape=[2], mean=0.0, stddev=1.0, seed=1)
            return builder.add(x=builder.band_part(x=x), y=drawn, name="y")

        return prog

    return _program(body, [(2, 2)])


def _large(builder):
    def prog(x):
        hidden = builder.relu(x=builder.linear(x=x, weight=weights(64, 32), bias=weights(64, seed=1)))
        return builder.linear(x=hidden, weight=weights(16, 64, seed=2), bias=weights(16, seed=3), name="y")

    return prog


def _compressed(name, target, **settings):
    import coremltools.optimize.coreml as optimise

    model = _program(_large, [(2, 32)], target=target)
    kinds = {
        "quantize": (optimise.OpLinearQuantizerConfig, optimise.linear_quantize_weights),
        "palettize": (optimise.OpPalettizerConfig, optimise.palettize_weights),
        "prune": (optimise.OpMagnitudePrunerConfig, optimise.prune_weights),
    }
    config, function = kinds[name]
    return function(model, optimise.OptimizationConfig(global_config=config(weight_threshold=64, **settings)))


def quantized():
    return _compressed("quantize", "iOS16", mode="linear_symmetric")


def quantized_blocks():
    return _compressed("quantize", "iOS18", mode="linear", dtype="int4", granularity="per_block", block_size=16)


def palettized():
    return _compressed("palettize", "iOS16", mode="uniform", nbits=4)


def palettized_groups():
    return _compressed("palettize", "iOS18", mode="uniform", nbits=2, granularity="per_grouped_channel", group_size=8)


def pruned():
    return _compressed("prune", "iOS16", target_sparsity=0.6)


BUILDERS = {
    function.__name__: function
    for function in (
        *(network, half, classifier, image, ranged, enumerated, embedding, loop, lists, state, random),
        *(quantized, quantized_blocks, palettized, palettized_groups, pruned),
    )
}


def build(name, folder):
    """Write one package and return its path."""
    path = str(Path(folder) / f"{name}.mlpackage")
    BUILDERS[name]().save(path)
    return path


def dense_weights(path):
    """What coremltools itself unpacks the compressed weights of a package to: [shape, values] of each matrix."""
    tools, *_ = _tools()
    import coremltools.optimize.coreml as optimise
    from coremltools.converters.mil.frontend.milproto.load import load

    model = optimise.decompress_weights(tools.models.MLModel(path, skip_model_load=True))
    spec = model.get_spec()
    program = load(spec, spec.specificationVersion, model.weights_dir)
    found = []
    for item in program.functions["main"].find_ops(op_type="const"):
        value = item.val.val
        if isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "f":
            found.append([list(value.shape), np.asarray(value, np.float64).ravel().tolist()])
    return sorted(found)
