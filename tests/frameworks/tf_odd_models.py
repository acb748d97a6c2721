"""Models for single tests, made inside a TensorFlow worker: code in the file, strange names, nesting, TF1, faults."""

from __future__ import annotations

import numpy as np


def _keras():
    from trueport.frameworks import _keras_model

    return _keras_model.keras_module(legacy=False)


def _legacy():
    from trueport.frameworks import _keras_model

    return _keras_model.keras_module(legacy=True)


def predict(path, inputs, legacy=False):
    """What Keras itself answers, one call of `predict_on_batch` per run; inputs by position of the model's own list."""
    keras = _legacy() if legacy else _keras()
    model = keras.models.load_model(path, compile=False)
    runs = next(iter(inputs.values())).shape[0]
    results = []
    for run in range(runs):
        answer = model.predict_on_batch([np.asarray(value[run]) for value in inputs.values()])
        results.append(answer if isinstance(answer, list) else [answer])
    return [np.stack(values) for values in zip(*results, strict=True)]


def layer_output(path, layer, inputs):
    """What a sub-model that ends at `layer` answers: the trace measured another way."""
    keras = _keras()
    model = keras.models.load_model(path, compile=False)
    inner = keras.Model(model.inputs, model.get_layer(layer).output)
    runs = next(iter(inputs.values())).shape[0]
    return np.stack([np.asarray(inner([value[run] for value in inputs.values()])) for run in range(runs)])


def save_lambda(path, legacy=False):
    keras = _legacy() if legacy else _keras()
    x = keras.Input((3,), name="x")
    keras.Model(x, keras.layers.Lambda(lambda v: v * 2.0 + 1.0, name="doubled")(x)).save(path)


def save_custom(path):
    keras = _keras()

    class Wobble(keras.layers.Layer):
        def call(self, x):
            return x * 3.0

    x = keras.Input((3,), name="x")
    keras.Model(x, Wobble(name="wobble")(x)).save(path)


def save_nested(path):
    """A model inside a model, called twice on two inputs: shared weights, one layer with two calls."""
    keras = _keras()
    keras.utils.set_random_seed(5)
    inner_in = keras.Input((4,), name="inner_in")
    inner = keras.Model(inner_in, keras.layers.Dense(3, activation="tanh", name="inner_dense")(inner_in), name="tower")
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    merged = keras.layers.Subtract(name="difference")([inner(left), inner(right)])
    keras.Model([right, left], keras.layers.Dense(2, name="score")(merged)).save(path)


def save_dictionaries(path):
    """Inputs and outputs as dictionaries whose sorted order differs from the order of creation."""
    keras = _keras()
    keras.utils.set_random_seed(6)
    b, a = keras.Input((2,), name="b"), keras.Input((2,), name="a")
    first = keras.layers.Dense(2, name="made_first")(keras.layers.Subtract()([b, a]))
    second = keras.layers.Dense(2, name="made_second")(keras.layers.Add()([a, b]))
    keras.Model({"b": b, "a": a}, {"zulu": first, "echo": second}).save(path)


def save_h5(kind_path, path):
    """Save a .keras model again as HDF5."""
    _keras().models.load_model(kind_path, compile=False).save(path)


def save_weights_only(kind_path, path):
    _keras().models.load_model(kind_path, compile=False).save_weights(path)


def save_legacy(kind, path):
    """Keras 2 models, as HDF5."""
    keras = _legacy()
    keras.utils.set_random_seed(9)
    layers = keras.layers
    if kind == "hard_sigmoid":
        steps = keras.Input((5, 3), name="steps")
        x = layers.LSTM(4, recurrent_activation="hard_sigmoid", name="lstm")(steps)
        model = keras.Model(steps, layers.Dense(2, name="scores")(x))
    else:
        image = keras.Input((9, 9, 3), name="image")
        x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, padding="same", name="conv")(image))
        x = layers.DepthwiseConv2D(3, strides=2, name="dw")(layers.ReLU(name="relu")(x))
        flat = layers.Flatten(name="flat")(x)
        zeta, alpha = layers.Dense(3, name="zeta")(flat), layers.Dense(3, name="alpha")(flat)
        model = keras.Model(image, [zeta, alpha])
        rng = np.random.default_rng(1)
        for _ in range(5):
            model(rng.normal(0.5, 2.0, (8, 9, 9, 3)).astype("float32"), training=True)
    model.save(path)


def hard_sigmoid_by_hand(path, inputs):
    """The LSTM of `save_legacy("hard_sigmoid")` in NumPy, with Keras 2's clip(0.2 x + 0.5)."""
    model = _legacy().models.load_model(path, compile=False)
    kernel, recurrent, bias, out_kernel, out_bias = [w.astype(np.float64) for w in model.get_weights()]

    def gate(x):
        return np.clip(0.2 * x + 0.5, 0, 1)

    results = []
    for steps in np.asarray(inputs["steps"], np.float64):
        h = c = np.zeros((steps.shape[0], 4))
        for t in range(steps.shape[1]):
            i, f, g, o = np.split(steps[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
            c = gate(f) * c + gate(i) * np.tanh(g)
            h = gate(o) * np.tanh(c)
        results.append(h @ out_kernel + out_bias)
    return np.stack(results)


def hard_sigmoid_in_keras_3(weights, inputs):
    """The same layers built by Keras 3 with the weights of the Keras 2 file."""
    keras = _keras()
    steps = keras.Input((5, 3), name="steps")
    x = keras.layers.LSTM(4, recurrent_activation="hard_sigmoid")(steps)
    model = keras.Model(steps, keras.layers.Dense(2)(x))
    model.set_weights([np.asarray(weight) for weight in weights])
    return np.stack([np.asarray(model(steps)) for steps in np.asarray(inputs["steps"])])


def save_function(kind, folder):
    """SavedModels of plain TensorFlow functions."""
    import tensorflow as tf

    module = tf.Module()
    if kind == "floor_division":
        module.f = tf.function(lambda x: {"y": x // 2}, input_signature=[tf.TensorSpec([None], tf.int32, name="x")])
    elif kind == "scatter":
        module.f = tf.function(
            lambda v: {"y": tf.scatter_nd([[0], [0], [2]], v, [4])},
            input_signature=[tf.TensorSpec([3], tf.float32, name="v")],
        )
    elif kind == "reads_file":
        module.f = tf.function(
            lambda name: {"y": tf.strings.length(tf.io.read_file(name))},
            input_signature=[tf.TensorSpec([], tf.string, name="name")],
        )
    elif kind == "resize":
        module.f = tf.function(
            lambda x: {"y": tf.image.resize(x, [7, 7]) * 0.5},
            input_signature=[tf.TensorSpec([None, 4, 4, 2], tf.float32, name="x")],
        )
    if kind == "two_signatures":
        module.f = tf.function(lambda x: {"y": x + 1.0}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        concrete = module.f.get_concrete_function()
        tf.saved_model.save(module, folder, signatures={"train": concrete, "infer": concrete})
    elif kind == "no_signature":
        tf.saved_model.save(tf.Module(), folder)
    else:
        tf.saved_model.save(module, folder, signatures={"serving_default": module.f.get_concrete_function()})


def save_tf1(folder):
    """A SavedModel as TensorFlow 1 wrote it: a graph with ref variables, a training node beside the signature."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 3], name="features")
        weight = v1.get_variable(
            "weight", initializer=tf.constant(np.arange(6).reshape(3, 2) / 3.0, tf.float32), use_resource=False
        )
        y = tf.nn.relu(tf.matmul(x, weight) - 1.0, name="scores")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, folder, {"features": x}, {"scores": y})


def load_by_tf1(path, inputs):
    """Outputs of a SavedModel through the TensorFlow 1 path of the framework file."""
    from trueport.frameworks import _tf_graph, _tf_saved

    saved = _tf_saved._load_v1(path, ValueError("refused for the test"))
    assert saved.call is None
    assert "TensorFlow 1" in saved.producer
    return _tf_graph.run_frozen(saved.frozen, {"case": inputs}, optimise=True)["case"]


def windows_used(path, inputs, wanted, budget):
    """Trace while counting: the most bytes of emitted values that one window held, and how many windows there were."""
    from trueport.frameworks import _tf_graph, keras

    held = []
    original = _tf_graph.windows

    def counting(need, limit):
        for group in original(need, limit):
            held.append(sum(need[name] for name in group))
            yield group

    _tf_graph.windows = counting
    try:
        sizes = {}
        keras.trace(
            path, inputs, wanted, lambda name, array: sizes.__setitem__(name, array.nbytes), budget=budget, trust=False
        )
    finally:
        _tf_graph.windows = original
    return {"held": held, "sizes": sizes}
