"""Programs that the tests edit, and what PyTorch itself makes of the same change: every step of a model can be exchanged."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_models import Apply

SHAPE = (2, 4, 6, 6)


class Net(nn.Module):
    """A small network with shared weights and a number among its operands; `swap` exchanges steps by their name."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shared, self.fc = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Linear(4, 5, bias=False)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(self.norm.running_var, 0.2, 1.5)
        self.swap = {}

    def step(self, name, function, *values):
        return self.swap.get(name, function)(*values)

    def forward(self, x):
        x = self.step("x", lambda v: v, x)
        y = self.step("conv2d", self.first, x)
        z = self.step("batch_norm", self.norm, y)
        r = self.step("relu", F.relu, z)
        s = self.step("conv2d_1", self.shared, r)
        s = self.step("conv2d_2", self.shared, s)
        a = self.step("add", torch.add, r, s)
        p = self.step("max_pool2d", lambda v: F.max_pool2d(v, 2), a)
        q = self.step("avg_pool2d", lambda v: F.avg_pool2d(v, 3, 1, 1, count_include_pad=False), p)
        m = self.step("mean", lambda v: v.mean((2, 3)), q)
        d = self.step("rsub", lambda v: 1.5 - v, m)
        logits = self.step("linear", self.fc, d)
        return {
            "probs": self.step("softmax", lambda v: v.softmax(1), logits),
            "hidden": self.step("hidden", lambda v: v, m),
        }


def save_net(path):
    """Write the network with an open batch size, its example inputs and an extra file."""
    torch.manual_seed(3)
    net = Net().eval()
    batch = torch.export.Dim("batch", min=1, max=7)
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes={"x": {0: batch}})
    with Path(path).open("wb") as file:
        torch.export.save(program, file, extra_files={"labels.txt": "cat\ndog"})
    torch.save(net.state_dict(), f"{path}.weights")
    return str(path)


def save_fixed(path):
    """Write a program with fixed sizes, the batch among the numbers of a reshape."""
    module = Apply(lambda x: (x * 2).reshape(2, -1).relu())
    with Path(path).open("wb") as file:
        torch.export.save(torch.export.export(module, (torch.randn(2, 3, 4),)), file)
    return str(path)


def save_script(path):
    """Write TorchScript."""
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.randn(1, 3)), path)
    return str(path)


def inputs(batch):
    """[1, batch, 3, 8, 8]: one run."""
    return {"x": np.random.default_rng(5).normal(size=(1, batch, 3, 8, 8)).astype(np.float32)}


def weights(path):
    """The network's weights by name."""
    return {name: value.numpy() for name, value in torch.load(f"{path}.weights").items()}


def expected(path, case, batch, arrays):
    """What the network gives with the steps of a case exchanged."""
    net = Net().eval()
    net.load_state_dict(torch.load(f"{path}.weights"))
    net.swap = STEPS[case](net, {name: torch.from_numpy(np.array(value)).float() for name, value in arrays.items()})
    with torch.no_grad():
        return {name: value.numpy() for name, value in net(torch.from_numpy(inputs(batch)["x"][0])).items()}


def _norm(net, eps=1e-5):
    return lambda v: F.batch_norm(
        v, net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias, eps=eps
    )


STEPS = {
    "nothing": lambda net, a: {},
    "weight": lambda net, a: {"conv2d": lambda v: F.conv2d(v, a["w"], net.first.bias, padding=1)},
    "shared": lambda net, a: {"conv2d_2": lambda v: F.conv2d(v, a["w"], padding=1)},
    "number": lambda net, a: {"rsub": lambda v: 2.5 - v},
    "numbers": lambda net, a: {"rsub": lambda v: a["n"] - v},
    "bias": lambda net, a: {"linear": lambda v: F.linear(v, net.fc.weight, a["b"])},
    "pads": lambda net, a: {"conv2d": lambda v: F.conv2d(F.pad(v, (0, 2, 0, 2)), net.first.weight, net.first.bias)},
    "average pads": lambda net, a: {
        "avg_pool2d": lambda v: F.avg_pool2d(F.pad(v, (0, 2, 0, 2)), 3, 1) * 9
        / F.conv2d(F.pad(torch.ones_like(v[:1, :1]), (0, 2, 0, 2)), torch.ones(1, 1, 3, 3))
    },
    "epsilon": lambda net, a: {"batch_norm": _norm(net, 0.1)},
    "leaky": lambda net, a: {"relu": lambda v: F.leaky_relu(v, 0.2)},
    "average": lambda net, a: {"max_pool2d": lambda v: F.avg_pool2d(v, 2)},
    "remove relu": lambda net, a: {"relu": lambda v: v},
    "remove add": lambda net, a: {"add": lambda r, s: s},
    "remove softmax": lambda net, a: {"softmax": lambda v: v},
    "front": lambda net, a: {"x": lambda v: (v.flip(1) - a["m"]) / a["s"]},
    "one reader": lambda net, a: {"add": lambda r, s: torch.tanh(r) + s},
    "output": lambda net, a: {"hidden": lambda v: v.sigmoid()},
    "twice": lambda net, a: {"softmax": lambda v: v.softmax(1).sqrt() * 0.5},
    "other": lambda net, a: {"conv2d_1": lambda v: net.shared(v) * v},
    "float64": lambda net, a: {"batch_norm": lambda v: _norm(net)(v)},
    "recomputed": lambda net, a: {"relu": lambda v: F.gelu(v * a["k"], approximate="tanh") + v},
    "recomputed mean": lambda net, a: {"mean": lambda v: v.amax((2, 3)) * a["k"]},
}  # fmt: skip
"""Case -> steps of the network exchanged, given its weights and the arrays of the edit."""


# -- many branches in one program -----------------------------------------------------------------------------------


def _resize(x, **how):
    return F.interpolate(x, scale_factor=2.0, **how)


ATTRIBUTES = [
    ("Conv", "strides", [2, 1], lambda x: F.conv2d(x, KERNEL), lambda x: F.conv2d(x, KERNEL, stride=(2, 1))),
    ("Conv", "dilations", [1, 2], lambda x: F.conv2d(x, KERNEL), lambda x: F.conv2d(x, KERNEL, dilation=(1, 2))),
    ("Conv", "pads", [1, 0, 1, 0], lambda x: F.conv2d(x, KERNEL), lambda x: F.conv2d(x, KERNEL, padding=(1, 0))),
    ("Conv", "auto_pad", "SAME_LOWER", lambda x: F.conv2d(x, KERNEL), lambda x: F.conv2d(F.pad(x, (1, 0, 1, 0)), KERNEL)),
    ("MaxPool", "pads", [0, 0, 1, 1], lambda x: F.max_pool2d(x, 2), lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-9e9), 2)),
    ("MaxPool", "ceil_mode", 1, lambda x: F.max_pool2d(x, 4), lambda x: F.max_pool2d(x, 4, ceil_mode=True)),
    ("MaxPool", "kernel_shape", [3, 3], lambda x: F.max_pool2d(x, 2, 2), lambda x: F.max_pool2d(x, 3, 2)),
    ("AveragePool", "count_include_pad", 0, lambda x: F.avg_pool2d(x, 2, 2, 1), lambda x: F.avg_pool2d(x, 2, 2, 1, count_include_pad=False)),
    ("LeakyRelu", "alpha", 0.3, lambda x: F.leaky_relu(x, 0.1), lambda x: F.leaky_relu(x, 0.3)),
    ("Elu", "alpha", 0.5, lambda x: F.elu(x), lambda x: F.elu(x, 0.5)),
    ("HardSigmoid", "alpha", 0.2, lambda x: F.hardsigmoid(x), lambda x: (0.2 * x + 0.5).clamp(0, 1)),
    ("Gelu", "approximate", "tanh", lambda x: F.gelu(x), lambda x: F.gelu(x, approximate="tanh")),
    ("Clip", "max", 0.5, lambda x: x.clamp(-1, 1), lambda x: x.clamp(-1, 0.5)),
    ("Clip", "max", 5.0, lambda x: F.relu6(x * 9), lambda x: (x * 9).clamp(0, 5)),
    ("Clip", "min", None, lambda x: F.hardtanh(x), lambda x: x.clamp(max=1.0)),
    ("Softmax", "axis", 1, lambda x: x.softmax(-1), lambda x: x.softmax(1)),
    ("Concat", "axis", 3, lambda x: torch.cat([x, x + 1], 1), lambda x: torch.cat([x, x + 1], 3)),
    ("ReduceMean", "axes", [1], lambda x: x.mean((2, 3)), lambda x: x.mean(1)),
    ("ReduceMean", "axes", [1, 2], lambda x: x.mean(), lambda x: x.mean((1, 2))),
    ("ReduceMax", "keepdims", 1, lambda x: x.amax(1), lambda x: x.amax(1, keepdim=True)),
    ("ArgMax", "axis", 2, lambda x: x.argmax(1), lambda x: x.argmax(2)),
    ("Transpose", "perm", [0, 2, 3, 1], lambda x: x.permute(0, 3, 1, 2), lambda x: x.permute(0, 2, 3, 1)),
    ("Transpose", "perm", [0, 3, 1, 2], lambda x: x.transpose(1, 2), lambda x: x.permute(0, 3, 1, 2)),
    ("Reshape", "shape", [2, 36, 4], lambda x: x.reshape(2, 4, 36), lambda x: x.reshape(2, 36, 4)),
    ("Reshape", "axis", 2, lambda x: x.flatten(1), lambda x: x.flatten(2)),
    ("Pad", "pads", [0, 0, 1, 2, 0, 0, 0, 1], lambda x: F.pad(x, (1, 1, 1, 1)), lambda x: F.pad(x, (2, 1, 1, 0))),
    ("Pad", "pads", [0, 1, 0, 0, 0, 0, 0, 0], lambda x: F.pad(x, (1, 1)), lambda x: F.pad(x, (0, 0, 0, 0, 1, 0))),
    ("Pad", "mode", "reflect", lambda x: F.pad(x, (1, 1)), lambda x: F.pad(x, (1, 1, 0, 0), mode="reflect")),
    ("Resize", "mode", "nearest", lambda x: _resize(x, mode="bilinear"), lambda x: _resize(x, mode="nearest")),
    ("Resize", "align_corners", 1, lambda x: _resize(x, mode="bilinear"), lambda x: _resize(x, mode="bilinear", align_corners=True)),
    ("Resize", "coordinate_transformation_mode", "half_pixel", lambda x: _resize(x, mode="bilinear", align_corners=True), lambda x: _resize(x, mode="bilinear")),
    ("Resize", "sizes", [9, 8], lambda x: _resize(x, mode="nearest"), lambda x: F.interpolate(x, size=(9, 8), mode="nearest")),
    ("Sub", "reversed", 1, lambda x: x - 3.0, lambda x: 3.0 - x),
    ("Sub", "reversed", 0, lambda x: 3.0 - x, lambda x: x - 3.0),
    ("Add", "alpha", 2, lambda x: torch.add(x, x.abs()), lambda x: torch.add(x, x.abs(), alpha=2)),
    ("Slice", "starts", [2], lambda x: x[:, :, 1:5], lambda x: x[:, :, 2:5]),
    ("Gather", "indices", 3, lambda x: x[:, 1], lambda x: x[:, 3]),
    ("DepthToSpace", "mode", "DCR", lambda x: F.pixel_shuffle(x, 2), lambda x: x.reshape(2, 2, 2, 1, 6, 6).permute(0, 3, 4, 1, 5, 2).reshape(2, 1, 12, 12)),
    ("LayerNormalization", "axis", 2, lambda x: F.layer_norm(x, (6,)), lambda x: F.layer_norm(x, (6, 6))),
    ("LayerNormalization", "epsilon", 0.1, lambda x: F.layer_norm(x, (6,)), lambda x: F.layer_norm(x, (6,), eps=0.1)),
    ("GroupNormalization", "num_groups", 4, lambda x: F.group_norm(x, 2), lambda x: F.group_norm(x, 4)),
    ("CumSum", "axis", 3, lambda x: x.cumsum(1), lambda x: x.cumsum(3)),
    ("Cast", "to", "int32", lambda x: (x * 9).to(torch.int64), lambda x: (x * 9).to(torch.int32)),
    ("Trilu", "k", 1, lambda x: x.triu(), lambda x: x.triu(1)),
]  # fmt: skip
"""(operator, attribute, value, function, the function with that value)."""
KERNEL = torch.linspace(-1, 1, 64).reshape(4, 4, 2, 2)

A = np.linspace(0.5, 2.0, 4).reshape(4, 1, 1)
"""A constant per channel, in float64 as arrays of an edit may be."""
_T = torch.from_numpy(A).float()
OPERATORS = [
    *[(name, {}, [], getattr(torch, name.lower())) for name in
      ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Neg", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Tanh", "Square")],
    *[(name, {}, [], function) for name, function in
      (("Softplus", F.softplus), ("Mish", F.mish), ("Selu", F.selu), ("HardSwish", F.hardswish), ("Swish", F.silu),
       ("Identity", lambda x: x), ("LogSigmoid", F.logsigmoid), ("Elu", F.elu), ("LeakyRelu", F.leaky_relu))],
    ("Sqrt", {}, [], torch.sqrt),
    ("Gelu", {"approximate": "tanh"}, [], lambda x: F.gelu(x, approximate="tanh")),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, [], lambda x: (0.3 * x + 0.4).clamp(0, 1)),
    ("ThresholdedRelu", {"alpha": 0.4}, [], lambda x: torch.where(x > 0.4, x, 0.0)),
    ("Clip", {"min": -0.2}, [], lambda x: x.clamp(min=-0.2)),
    ("Clip", {}, [np.float32(-1.0), np.float32(0.3)], lambda x: x.clamp(-1.0, 0.3)),
    ("PRelu", {}, [A], lambda x: F.prelu(x, _T.reshape(-1))),
    ("Add", {}, [A], lambda x: x + _T),
    ("Sub", {}, [A], lambda x: x - _T),
    ("Mul", {}, [A], lambda x: x * _T),
    ("Div", {}, [A], lambda x: x / _T),
    ("Pow", {}, [np.float64(2.0)], lambda x: x**2),
    ("Max", {}, [A], lambda x: torch.maximum(x, _T)),
    ("Greater", {}, [A], lambda x: x > _T),
    ("Softmax", {"axis": 1}, [], lambda x: x.softmax(1)),
    ("LogSoftmax", {"axis": -1}, [], lambda x: x.log_softmax(-1)),
    ("MatMul", {}, [np.eye(6)[::-1]], lambda x: x.flip(3)),
    ("Conv", {"pads": [1, 0, 0, 1]}, [KERNEL.numpy(), A.reshape(-1)], lambda x: F.conv2d(F.pad(x, (0, 1, 1, 0)), KERNEL, _T.reshape(-1))),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [KERNEL.numpy()], lambda x: F.conv2d(x, KERNEL, stride=2)),
    ("ConvTranspose", {"strides": [2, 2]}, [KERNEL.numpy()], lambda x: F.conv_transpose2d(x, KERNEL, stride=2)),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}, [], lambda x: F.max_pool2d(x, 2)),
    ("AveragePool", {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0], "count_include_pad": 1}, [], lambda x: F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 2, 1)),
    ("GlobalAveragePool", {}, [], lambda x: x.mean((2, 3), keepdim=True)),
    ("GlobalMaxPool", {}, [], lambda x: x.amax((2, 3), keepdim=True)),
    ("Resize", {"mode": "linear", "sizes": [2, 4, 9, 5]}, [], lambda x: F.interpolate(x, size=(9, 5), mode="bilinear")),
    ("Resize", {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", "scales": [1, 1, 2, 3]}, [], lambda x: F.interpolate(x, scale_factor=(2.0, 3.0))),
    ("BatchNormalization", {"epsilon": 0.01}, [A.reshape(-1)] * 4, lambda x: F.batch_norm(x, *[_T.reshape(-1)] * 4, eps=0.01)),
    ("LayerNormalization", {"axis": 3}, [np.arange(6.0), np.ones(6)], lambda x: F.layer_norm(x, (6,), torch.arange(6.0), torch.ones(6))),
    ("GroupNormalization", {"num_groups": 2}, [A.reshape(-1)], lambda x: F.group_norm(x, 2, _T.reshape(-1))),
    ("InstanceNormalization", {}, [A.reshape(-1), A.reshape(-1)], lambda x: F.instance_norm(x, weight=_T.reshape(-1), bias=_T.reshape(-1))),
    ("ReduceMean", {"axes": [2, 3], "keepdims": 0}, [], lambda x: x.mean((2, 3))),
    ("ReduceSum", {}, [np.array([1])], lambda x: x.sum(1, keepdim=True)),
    ("ReduceMin", {}, [], lambda x: x.amin((0, 1, 2, 3), keepdim=True)),
    ("ReduceL2", {"axes": [1]}, [], lambda x: x.norm(dim=1, keepdim=True)),
    ("ReduceSumSquare", {"axes": [1]}, [], lambda x: x.square().sum(1, keepdim=True)),
    ("ReduceProd", {"axes": [3], "keepdims": 0}, [], lambda x: x.prod(3)),
    ("ReduceLogSumExp", {"axes": [3]}, [], lambda x: x.logsumexp(3, keepdim=True)),
    ("ArgMin", {"axis": 1, "keepdims": 0}, [], lambda x: x.argmin(1)),
    ("CumSum", {"axis": 2}, [], lambda x: x.cumsum(2)),
    ("Transpose", {"perm": [0, 2, 3, 1]}, [], lambda x: x.permute(0, 2, 3, 1)),
    ("Transpose", {}, [], lambda x: x.permute(3, 2, 1, 0)),
    ("Reshape", {"shape": [0, -1]}, [], lambda x: x.reshape(2, -1)),
    ("Reshape", {}, [np.array([-1, 6])], lambda x: x.reshape(-1, 6)),
    ("Flatten", {"axis": 2}, [], lambda x: x.reshape(8, 36)),
    ("Unsqueeze", {"axes": [0, -1]}, [], lambda x: x[None, ..., None]),
    ("Expand", {"shape": [3, 2, 4, 6, 6]}, [], lambda x: x.expand(3, 2, 4, 6, 6)),
    ("Tile", {"repeats": [1, 2, 1, 1]}, [], lambda x: x.repeat(1, 2, 1, 1)),
    ("Concat", {"axis": 1}, [np.zeros((2, 1, 6, 6))], lambda x: torch.cat([x, torch.zeros(2, 1, 6, 6)], 1)),
    ("Pad", {"pads": [0, 0, 1, 0, 0, 0, 0, 2], "value": 3.0}, [], lambda x: F.pad(x, (0, 2, 1, 0), value=3.0)),
    ("Pad", {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "mode": "reflect"}, [], lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    ("Slice", {"starts": [1, 0], "ends": [4, 5], "axes": [1, 3], "steps": [1, 2]}, [], lambda x: x[:, 1:4, :, 0:5:2]),
    ("Slice", {"starts": [-1], "ends": [-(2**62)], "axes": [1], "steps": [-1]}, [], lambda x: x.flip(1)),
    ("Gather", {"axis": 1}, [np.array([2, -1, 0, 1])], lambda x: x[:, [2, 3, 0, 1]]),
    ("Gather", {"axis": 1, "indices": -1}, [], lambda x: x[:, 3]),
    ("Flip", {"axes": [1, 3]}, [], lambda x: x.flip(1, 3)),
    ("Roll", {"shifts": [1], "dims": [2]}, [], lambda x: x.roll(1, 2)),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [], lambda x: F.pixel_shuffle(x, 2)),
    ("SpaceToDepth", {"blocksize": 2}, [], lambda x: x.reshape(2, 4, 3, 2, 3, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 16, 3, 3)),
    ("SpaceToDepth", {"blocksize": 2, "mode": "CRD"}, [], lambda x: F.pixel_unshuffle(x, 2)),
    ("Einsum", {"equation": "bchw,wv->bchv"}, [np.eye(6)], lambda x: x),
    ("Cast", {"to": 7}, [], lambda x: x.to(torch.int64)),
    ("Mod", {}, [np.float32(0.7)], lambda x: x.remainder(0.7)),
]  # fmt: skip
"""(operator, attributes, constants, what it computes)."""


def save_branches(path, kind):
    """Write one program with a branch for every row of a table; returns the names of the nodes to be edited."""
    x = torch.rand(SHAPE) if kind == "operators" else torch.randn(SHAPE)
    if kind == "operators":
        module = Apply(lambda x: [x * 1.0 for _ in OPERATORS])
    else:
        module = Apply(lambda x: [before(x) for *_, before, _ in ATTRIBUTES])
    program = torch.export.export(module, (x,))
    with Path(path).open("wb") as file:
        torch.export.save(program, file)
    from trueport.frameworks import torch as framework

    graph = framework.graph(str(path), trust=False)
    if kind == "operators":
        return list(graph["outputs"])
    makers = {name: node for node in graph["nodes"] for name in node["outputs"]}
    found = [makers[name] for name in graph["outputs"]]
    assert [node["op"] for node in found] == [row[0] for row in ATTRIBUTES]
    return [node["name"] for node in found]


def branch_inputs():
    """One run, between -1 and 1."""
    return {"x": np.random.default_rng(2).uniform(-1, 1, (1, *SHAPE)).astype(np.float32)}


def branch_outputs(kind):
    """What the table says that every branch gives after its edit."""
    x = torch.from_numpy(branch_inputs()["x"][0])
    functions = [row[-1] for row in (OPERATORS if kind == "operators" else ATTRIBUTES)]
    return {f"output_{index}": function(x).numpy() for index, function in enumerate(functions)}


def facts(path):
    """All that a file holds beside its graph: weights, ranges, example inputs, tables of modules, extra files."""
    with Path(path).open("rb") as file:
        program = torch.export.load(file)
    with zipfile.ZipFile(path) as archive:
        extra = {name: archive.read(name).decode() for name in archive.namelist() if "/extra/" in name}
    calls = [(row.fqn, str(row.signature.in_spec) if row.signature else "") for row in program.module_call_graph]
    examples = [value.numpy() for value in program.example_inputs[0]]
    weights = {name: value.detach().numpy() for name, value in program.state_dict.items()}
    trained = sorted(name for name, value in program.state_dict.items() if isinstance(value, nn.Parameter))
    return {
        "weights": weights,
        "trained": trained,
        "ranges": {str(key): str(value) for key, value in program.range_constraints.items()},
        "examples": examples,
        "calls": calls,
        "extra": extra,
        "meta": {node.name: str(node.meta.get("nn_module_stack")) for node in program.graph.nodes},
    }


def module_gives(path, batch):
    """What PyTorch's own module made of the file gives, so that not only our interpreter takes it."""
    with Path(path).open("rb") as file:
        module = torch.export.load(file).module()
    with torch.no_grad():
        found = module(torch.from_numpy(inputs(batch)["x"][0]))
    return {name: value.numpy() for name, value in found.items()}


def rows(kind):
    """A table without its functions."""
    if kind == "attributes":
        return [list(row[:3]) for row in ATTRIBUTES]
    return [[name, attributes, [np.asarray(one) for one in constants]] for name, attributes, constants, _ in OPERATORS]


def written_again(kind, folder):
    """Set every attribute that `graph` shows to the value that it shows; (how many, what is refused, outputs, path)."""
    import torch_inside_models

    from trueport.frameworks import _torch_edit
    from trueport.frameworks import torch as framework
    from trueport.frameworks._base import Unsupported
    from trueport.frameworks._torch_editor import Editor

    path = torch_inside_models.save(kind, folder, 4)
    editor, refused, count = Editor(path), [], 0
    for node in framework.graph(path, trust=False)["nodes"]:
        for name, value in node["attributes"].items():
            count += 1
            edit = {"kind": "set-attribute", "node": node["name"], "attribute": name, "value": value}
            try:
                _torch_edit.change_attribute(editor, edit)
            except Unsupported as error:
                refused.append(f"{node['op']} {name}: {error}")
    editor.save(f"{path}.again.pt2")
    feeds = {"a": {"x": torch_inside_models.inputs(kind, 1)}}
    outputs = [
        framework.run(one, feeds, precision="float32", variant="default", trust=False)["a"]
        for one in (path, f"{path}.again.pt2")
    ]
    return count, refused, outputs
