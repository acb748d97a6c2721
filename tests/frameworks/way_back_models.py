"""Runs in workers: small ONNX files with one telling operator, and training of what came back."""

from __future__ import annotations

import numpy as np

SIZES = {"DepthToSpace": (2, 4, 6, 6), "LSTM": (5, 2, 4), "GRU": (5, 2, 4), "RNN": (5, 2, 4)}


def _attributes(given):
    return {key: value for key, value in given.items() if key not in ("op", "axes", "bias_behind")}


def save_onnx(path, op, **settings):
    """Write a model with this operator behind an input; return feeds {"x": [R, *shape]}."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    shape = SIZES.get(op, (2, 4, 7, 7))
    if op == "SpaceToDepth":
        shape = (2, 4, 6, 6)
    constants = {}

    def weight(name, *sizes):
        constants[name] = (rng.normal(size=sizes) / np.sqrt(np.prod(sizes[1:]) or 1)).astype(np.float32)
        return name

    inputs, outputs, attributes = ["x"], ["y"], _attributes(settings)
    if op == "Conv":
        group = settings.get("group", 1)
        inputs += [weight("w", 8, 4 // group, 3, 3)]
        if not settings.get("bias_behind"):
            inputs += [weight("b", 8)]
    elif op == "ConvTranspose":
        inputs += [weight("w", 4, 6, 3, 3), weight("b", 6 * settings.get("group", 1))]
    elif op == "InstanceNormalization":
        inputs += [weight("w", 4), weight("b", 4)]
    elif op == "PRelu":
        inputs += [weight("w", 4, 1, 1)]
    elif op == "Concat":
        inputs += ["x"]
    elif op == "ReduceMean":
        attributes["axes"] = settings["axes"]
    elif op == "Slice":
        for name, value in {"starts": [1, -5], "ends": [4, 2**62], "axes": [1, 2], "steps": [2, 2]}.items():
            constants[name] = np.array(value, np.int64)
            inputs.append(name)
    elif op == "Resize":
        constants["scales"] = np.array([1, 1, 2, 3], np.float32)
        inputs += ["", "scales"]
    elif op in ("LSTM", "GRU", "RNN"):
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
        ways = 2 if settings.get("direction") == "bidirectional" else 1
        inputs += [weight("w", ways, gates * 3, 4), weight("r", ways, gates * 3, 3), weight("b", ways, gates * 6)]
        attributes["hidden_size"] = 3
        outputs = ["y", "last"]
    nodes = [helper.make_node(op, inputs, outputs, name="one", **attributes)]
    if settings.get("bias_behind"):
        nodes = [helper.make_node(op, inputs, ["c"], name="one", **attributes)]
        nodes.append(helper.make_node("Add", [weight("b", 8, 1, 1), "c"], outputs, name="two"))
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n" if len(shape) == 4 else shape[0], *shape[1:]])]
    if len(shape) == 3:
        values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [shape[0], "n", shape[2]])]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "one", values, given, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return {"x": rng.normal(size=(2, *shape)).astype(np.float32)}


def context(path):
    """A ConvertContext for the file."""
    from trueport.frameworks import onnx as framework

    return {
        "signature": framework.signature(path, trust=False),
        "example": {},
        "calibration": {},
        "trust": False,
    }


def run_onnx(path, feeds):
    """Outputs in order, [R, *shape] each."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = [session.run(None, {"x": row}) for row in feeds["x"]]
    return [np.stack(values) for values in zip(*rows, strict=True)]


def _keras(path):
    import os

    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    return keras.models.load_model(path)


def run_keras(path, feeds):
    """Outputs in order, [R, *shape] each."""
    model = _keras(path)
    rows = []
    for row in feeds["x"]:
        made = model(row, training=False)
        rows.append([np.asarray(item) for item in (made if isinstance(made, (list, tuple)) else [made])])
    return [np.stack(values) for values in zip(*rows, strict=True)]


def train_keras(path, steps):
    """Fit a file as a user would, to random targets for random inputs; nothing but Keras is needed."""
    import keras

    model = _keras(path)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    inputs = [_random(rng, tensor.shape, str(tensor.dtype)) for tensor in model.inputs]
    before = [np.array(weight) for weight in model.trainable_variables]
    targets = [_classes(rng, (8, *tensor.shape[1:])) for tensor in model.outputs]
    model.compile(optimizer=keras.optimizers.Adam(0.02), loss="mse")
    history = model.fit(
        inputs if len(inputs) > 1 else inputs[0],
        targets if len(targets) > 1 else targets[0],
        epochs=steps,
        batch_size=8,
        verbose=0,
    )
    moved = sum(bool(np.any(np.array(w) != old)) for w, old in zip(model.trainable_variables, before, strict=True))
    return {
        "losses": [float(loss) for loss in history.history["loss"]],
        "trainable": len(before),
        "moved": moved,
        "layers": [type(layer).__name__ for layer in model.layers],
    }


def _random(rng, shape, dtype, batch=8):
    sizes = [batch, *(size or 1 for size in shape[1:])]
    if "int" in dtype:
        return rng.integers(0, 5, sizes).astype(dtype)
    return rng.normal(size=sizes).astype(dtype)


def _classes(rng, shape):
    """Random classes, one-hot on the last axis: what a softmax can reach."""
    return np.eye(shape[-1], dtype=np.float32)[rng.integers(0, shape[-1], shape[:-1])]


def train_torch(path, steps):
    """Train a .pt2 with plain PyTorch."""
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(True)  # what ran in this worker before may have switched it off
    program = torch.export.load(path)
    module = program.module()
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in weights]
    shape = [4 if not isinstance(size, int) else size for size in program.example_inputs[0][0].shape]
    given = torch.randn(shape)
    optimiser = torch.optim.Adam(weights, lr=0.01)
    losses, target = [], None
    for _ in range(steps):
        made = module(given)
        made = made[0] if isinstance(made, (tuple, list)) else made
        if target is None:
            target = torch.from_numpy(_classes(np.random.default_rng(0), tuple(made.shape)))
        loss = torch.nn.functional.mse_loss(made, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    moved = sum(bool((weight.detach() != old).any()) for weight, old in zip(weights, before, strict=True))
    return {"losses": losses, "trainable": len(weights), "moved": moved}


def save_keras2(path):
    """A Keras 2 file."""
    import os

    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tf_keras

    layers = tf_keras.layers
    model = tf_keras.Sequential([layers.Dense(3, input_shape=(4,), activation="relu"), layers.Dense(2)])
    model.save(path)
