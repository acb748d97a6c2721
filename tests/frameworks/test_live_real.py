"""Live objects of the real frameworks, saved inside their own interpreter and run again from the file."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import trueport

SOURCE = Path(trueport.__file__).resolve().parents[1]

PRELUDE = """
import json, sys, warnings
from pathlib import Path
import numpy as np
from trueport.errors import UsageError
from trueport.live import save_live
folder, notes, told = Path(sys.argv[1]), [], {}
"""


@pytest.fixture
def script(env, tmp_path):
    """script(toolchain, code) runs code in that toolchain's interpreter and returns what it left in `told`."""

    def run(toolchain, code):
        file = tmp_path / "script.py"
        file.write_text(PRELUDE + code + "\nPath(sys.argv[2]).write_text(json.dumps(told | {'notes': notes}))\n")
        out = tmp_path / "told.json"
        environment = os.environ | {"PYTHONPATH": str(SOURCE), "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            [str(env(toolchain)), str(file), str(tmp_path / "out"), str(out)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())

    return run


def test_torch(script):
    told = script(
        "torch",
        """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.drop = torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)
    def forward(self, x, scale=None):
        x = self.drop(self.bn(self.a(x)))
        return x if scale is None else x * scale
torch.manual_seed(0)
net = Net().train()
net.drop.eval()
before = {name: value.clone() for name, value in net.state_dict().items()}
path, format, versions = save_live(net, np.ones((1, 4), np.float32), folder / "a", note=notes.append)
told.update(path=path.name, format=format, versions=versions)
told["modes"] = [net.training, net.a.training, net.drop.training]
told["state"] = all(torch.equal(before[name], value) for name, value in net.state_dict().items())
again = torch.export.load(str(path)).module()
net.eval()
x = torch.randn(5, 4)
told["batch5"] = float((again(x) - net(x)).detach().abs().max())
told["batch1"] = float((again(x[:1]) - net(x[:1])).detach().abs().max())

path, _, _ = save_live(net, {"x": torch.ones(2, 4), "scale": torch.ones(2, 1) * 3}, folder / "b", note=notes.append)
again = torch.export.load(str(path)).module()
told["named"] = float((again(x=x, scale=torch.full((5, 1), 3.0)) - net(x) * 3).detach().abs().max())

class Fixed(torch.nn.Module):
    def forward(self, x):
        return x.reshape(2, -1) if x.shape[0] == 2 else x
path, _, _ = save_live(Fixed().eval(), torch.ones(2, 4), folder / "c", note=told.setdefault("fixed", []).append)
program = torch.export.load(str(path))
path, told["program"], _ = save_live(program, None, folder / "d")
told["same"] = bool(torch.equal(torch.export.load(str(path)).module()(torch.ones(2, 4)), torch.ones(2, 4)))

class Plain(Net):
    def forward(self, x):
        return self.drop(self.bn(self.a(x)))
plain = Plain()
scripted = torch.jit.script(plain.train())
path, told["script"], _ = save_live(scripted, None, folder / "e", note=told.setdefault("script_notes", []).append)
told["script_modes"] = [scripted.training, torch.jit.load(str(path)).training]
plain.eval()
told["script_error"] = float((torch.jit.load(str(path))(x) - plain(x)).detach().abs().max())

class Branchy(torch.nn.Module):
    def forward(self, x):
        return x if float(x.sum()) > 0 else -x
branchy = Branchy().train()
try:
    save_live(branchy, torch.ones(2, 4), folder / "f")
except UsageError as error:
    told["refused"] = str(error)
told["mode_after_failure"] = branchy.training
""",
    )
    assert (told["path"], told["format"]) == ("model.pt2", "pytorch")
    assert set(told["versions"]) == {"python", "numpy", "torch"}
    assert told["modes"] == [True, True, False], "every submodule's own mode is restored"
    assert told["state"], "BatchNorm's running statistics were not touched"
    assert max(told["batch5"], told["batch1"], told["named"], told["script_error"]) < 1e-6
    assert told["notes"] == [
        "the module was in train mode; it is compared in eval mode (no dropout, stored BatchNorm statistics)"
    ]
    assert len(told["fixed"]) == 1
    assert "fixed batch of 2" in told["fixed"][0]
    assert told["program"] == "pytorch"
    assert told["same"]
    assert told["script"] == "torchscript"
    assert told["script_modes"] == [True, False]
    assert "train mode" in told["script_notes"][0]
    assert "could not be saved as pytorch" in told["refused"]
    assert told["mode_after_failure"] is True


def test_tensorflow_and_keras(script):
    told = script(
        "tensorflow",
        """
import tensorflow as tf, keras
keras.utils.set_random_seed(0)
x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="tanh"), keras.layers.Dropout(0.5)])
path, format, versions = save_live(model, None, folder / "a")
told.update(keras=[path.name, format], versions=sorted(versions))
told["keras_error"] = float(np.abs(keras.models.load_model(path)(x) - model(x)).max())

class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
    def call(self, x):
        return self.dense(x)
own = Own()
path, told["own"], _ = save_live(own, x, folder / "b", note=notes.append)
def serve(path, value):
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    (name,) = function.structured_input_signature[1]
    return list(function(**{name: tf.constant(value)}).values())[0]
told["own_error"] = float(np.abs(serve(path, x) - own(x)).max())

weight = tf.Variable(tf.random.normal((4, 2)))
@tf.function
def f(x):
    return tf.tanh(x @ weight)
path, told["function"], _ = save_live(f, x[:1], folder / "c")
told["function_error"] = float(np.abs(serve(path, x) - f(x)).max())

concrete = f.get_concrete_function(tf.TensorSpec([None, 4], tf.float32))
path, told["concrete"], _ = save_live(concrete, None, folder / "d")
told["concrete_error"] = float(np.abs(serve(path, x) - f(x)).max())
try:
    save_live(f, None, folder / "e")
except UsageError as error:
    told["refused"] = str(error)

class Module(tf.Module):
    def __init__(self):
        self.w = tf.Variable(tf.ones((4, 2)))
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])
    def __call__(self, x):
        return x @ self.w
module = Module()
path, told["module"], _ = save_live(module, None, folder / "f")
told["module_error"] = float(np.abs(serve(path, x) - module(x)).max())
path, told["loaded"], _ = save_live(tf.saved_model.load(str(path)), None, folder / "g")
told["loaded_error"] = float(np.abs(serve(path, x) - module(x)).max())
""",
    )
    assert told["keras"] == ["model.keras", "keras"]
    assert told["versions"] == ["keras", "numpy", "python", "tensorflow"]
    assert {told[name] for name in ("own", "function", "concrete", "module", "loaded")} == {"savedmodel"}
    errors = [told[name] for name in told if name.endswith("_error")]
    assert len(errors) == 6
    assert max(errors) < 1e-6
    assert told["notes"] == ["Own is a class of your own, so the model was exported as a SavedModel"]
    assert "needs example inputs" in told["refused"]


def test_onnx(script):
    told = script(
        "onnx",
        """
import onnx, onnxruntime
from onnx import helper, numpy_helper
import trueport.live as live
w = np.arange(4 * 300, dtype=np.float32).reshape(4, 300)
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
    [helper.make_tensor_value_info("x", 1, ["N", 4])], [helper.make_tensor_value_info("y", 1, ["N", 300])], [numpy_helper.from_array(w, "w")])
proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
def run(path):
    return onnxruntime.InferenceSession(str(path)).run(None, {"x": np.ones((2, 4), np.float32)})[0].tolist()
path, told["format"], told["versions"] = save_live(proto, None, folder / "a")
told["small"] = run(path)
before = proto.SerializeToString()
live.ONNX_LIMIT = 10
path, _, _ = save_live(proto, None, folder / "b")
told["files"] = sorted(item.name for item in path.parent.iterdir())
told["large"] = run(path)
told["untouched"] = before == proto.SerializeToString()
try:
    save_live(onnx.load(str(path), load_external_data=False), None, folder / "c")
except UsageError as error:
    told["refused"] = str(error)
""",
    )
    assert told["small"] == told["large"]
    assert told["small"][1][:3] == [1800.0, 1804.0, 1808.0]
    assert told["format"] == "onnx"
    assert "onnx" in told["versions"]
    assert "onnx.load" in told["refused"]
    assert told["untouched"]
    assert told["files"] == ["model.onnx", "model.onnx.data"]
