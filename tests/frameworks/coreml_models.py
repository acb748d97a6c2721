"""Core ML models for tests, and sources of odd ones, made inside the toolchains. The parent never imports this file.

Programs are written with coremltools' builder, so that every name and number in them is known here.
"""

from __future__ import annotations

import numpy as np


def rng_array(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def keras_gelu(out):
    """A dense layer with the exact GELU."""
    import keras

    keras.utils.set_random_seed(0)
    x = keras.layers.Input((6,), name="x")
    y = keras.layers.Dense(4, activation="gelu")(x)
    keras.Model(x, keras.layers.Dense(3, name="y")(y)).save(out)


def keras_odd_names(out):
    """Names with blanks, digits and hyphens."""
    import keras

    keras.utils.set_random_seed(0)
    x = keras.layers.Input((6,), name="3rd input")
    keras.Model(x, keras.layers.Dense(4, name="out-put")(x)).save(out)


def export(source, out):
    """A Keras file as a SavedModel."""
    import keras

    keras.models.load_model(source, compile=False).export(out, verbose=False)


def build(name, out):
    """Write one of PROGRAMS as a package."""
    import coremltools
    from coremltools.converters.mil.mil import Builder as mb

    target = coremltools.target.iOS17 if name == "open" else coremltools.target.iOS16
    program = PROGRAMS[name](mb, target)
    model = coremltools.convert(
        program,
        convert_to="mlprogram",
        compute_precision=coremltools.precision.FLOAT32,
        minimum_deployment_target=target,
        pass_pipeline=coremltools.PassPipeline.CLEANUP,
        skip_model_load=True,
    )
    if name == "quantised":
        import coremltools.optimize.coreml as optimize

        grid = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=1)
        model = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=grid))
    model.save(out)


def picture(mb, target):
    """[2, 3, 8, 8] -> conv, relu, max pool, mean, layer norm, linear, softmax; one constant is read twice."""
    kernel, bias = rng_array(6, 3, 3, 3, seed=1), rng_array(6, seed=2)
    gamma, matrix = rng_array(6, seed=3), rng_array(4, 6, seed=4)

    @mb.program(input_specs=[mb.TensorSpec(shape=(2, 3, 8, 8))], opset_version=target)
    def made(x):
        shared = mb.const(val=rng_array(1, 6, 1, 1, seed=5), name="shared")
        y = mb.conv(x=x, weight=kernel, bias=bias, strides=[1, 1], pad_type="custom", pad=[1, 1, 1, 1], name="conv")
        y = mb.relu(x=y, name="bent")
        z = mb.mul(x=y, y=shared, name="scaled")
        y = mb.add(x=z, y=shared, name="shifted")
        y = mb.max_pool(x=y, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid", name="pooled")
        y = mb.reduce_mean(x=y, axes=[2, 3], keep_dims=False, name="mean")
        y = mb.layer_norm(x=y, axes=[-1], gamma=gamma, beta=bias, epsilon=np.float32(1e-3), name="norm")
        y = mb.linear(x=y, weight=matrix, name="logits")
        return mb.softmax(x=y, axis=-1, name="probabilities")

    return made


def opened(mb, target):
    """[open, 4] -> a - b, concatenated with a, of an open batch."""
    from coremltools.converters.mil.mil import get_new_symbol

    @mb.program(input_specs=[mb.TensorSpec(shape=(get_new_symbol(), 4))], opset_version=target)
    def made(x):
        a = mb.linear(x=x, weight=rng_array(4, 4, seed=6), name="a")
        b = mb.tanh(x=x, name="b")
        c = mb.sub(x=a, y=b, name="difference")
        return mb.concat(values=[c, a], axis=1, name="joined")

    return made


def quantised(mb, target):
    """[1, 16] -> a matrix of 32 rows whose weights lie on an int8 grid."""

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 16))], opset_version=target)
    def made(x):
        return mb.linear(x=x, weight=rng_array(32, 16, seed=7), name="y")

    return made


PROGRAMS = {"picture": picture, "open": opened, "quantised": quantised}


def look(path):
    """Piece of the file -> a digest: every operation by its first result, the weights of every constant, the interface."""
    import hashlib

    from trueport.frameworks import _coreml_read as reading

    spec = reading.read_spec(path)
    program = reading.read_program(spec, path)
    function = next(iter(spec.mlProgram.functions.values()))
    block = function.block_specializations[function.opset]
    found = {"description": spec.description.SerializeToString(deterministic=True)}
    for operation in block.operations:
        found[operation.outputs[0].name] = operation.SerializeToString(deterministic=True)
    for name, stored in program.constants.items():
        value = stored.load()
        found[f"{name}:value"] = value.encode() if isinstance(value, str) else np.asarray(value).tobytes()
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def declared(path):
    """Value -> (type, shape) as the file records it."""
    from trueport.frameworks import _coreml_read as reading

    program = reading.read_program(reading.read_spec(path), path)
    return {name: [item.dtype, list(item.shape or ())] for name, item in program.types().items()}


def sound(path):
    """Let coremltools read the program back, which checks every recorded type; returns the operators."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto import load

    model = coremltools.models.MLModel(path, skip_model_load=True)
    spec = model.get_spec()
    program = load.load(spec, spec.specificationVersion, model.weights_dir)
    return [item.op_type for item in program.functions["main"].operations]


def network(out):
    """The older format, one file: [3, 5] -> a matrix, relu, a product with a constant, softmax."""
    import coremltools
    from coremltools.models import datatypes
    from coremltools.models.neural_network import NeuralNetworkBuilder

    made = NeuralNetworkBuilder([("x", datatypes.Array(3, 5))], [("y", None)], disable_rank5_shape_mapping=True)
    matrix = rng_array(4, 5, seed=8)
    made.add_inner_product("matrix", matrix, None, 5, 4, False, "x", "rows")
    made.add_activation("bent", "RELU", "rows", "bent")
    made.add_load_constant_nd("factor", "factor", rng_array(1, 4, seed=9), (1, 4))
    made.add_multiply_broadcastable("scaled", ["bent", "factor"], "scaled")
    made.add_softmax_nd("y", "scaled", "y", -1)
    coremltools.models.MLModel(made.spec, skip_model_load=True).save(out)
