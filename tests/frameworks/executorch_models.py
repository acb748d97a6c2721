"""PyTorch models made in the executorch toolchain, what PyTorch computes of them, and ExecuTorch's conversions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Cnn(nn.Module):
    """Convolution with uneven strides, BatchNorm, pooling and a dense layer; gives every stage when asked."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=(2, 1), padding=(1, 0), groups=3)
        self.norm = nn.BatchNorm2d(6, eps=1e-3)
        self.dense = nn.Linear(6, 4)

    def stages(self, image):
        """Every value on the way, by the ONNX operator that makes it."""
        found = {"Conv": self.conv(image)}
        found["BatchNormalization"] = self.norm(found["Conv"])
        found["Relu"] = torch.relu(found["BatchNormalization"])
        found["MaxPool"] = F.max_pool2d(found["Relu"], 2, padding=1)
        found["ReduceMean"] = found["MaxPool"].mean((2, 3))
        found["Gemm"] = self.dense(found["ReduceMean"])
        found["Softmax"] = torch.softmax(found["Gemm"], 1)
        return found

    def forward(self, image):
        found = self.stages(image)
        return found["Softmax"], found["ReduceMean"]


class Parts(nn.Module):
    """A split, one weight with two readers, an output given twice, an input given out, and a list of tensors."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Parameter(torch.randn(3))

    def forward(self, x):
        a, _, c = torch.split(x, [3, 2, 3], dim=1)
        y = a * self.shared - (c + self.shared)
        return y, y, x, torch.cat([a, self.shared.expand(2, 3)], 1)


class Words(nn.Module):
    """Operators whose settings are worth telling."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1)
        self.table = nn.Embedding(6, 4)

    def forward(self, x, index):
        padded = F.pad(x, (2, 4, 1, 3), value=2.0)
        cut = padded[:, :, :, 1:6:2].permute(0, 2, 3, 1)
        leaky = F.leaky_relu(cut.clamp(-0.5, 0.75), 0.3)
        return leaky, self.up(x), self.table(index), F.gelu(x, approximate="tanh")


class Alpha(nn.Module):
    """`add` with a factor for its second operand."""

    def forward(self, x, y):
        return torch.add(x, y, alpha=3)


class Counter(nn.Module):
    """Keeps a running sum from call to call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(2))

    def forward(self, x):
        self.total.add_(x)
        return self.total * 1.0


_ALL = {
    "cnn": (Cnn, lambda: (torch.randn(2, 3, 8, 9),)),
    "parts": (Parts, lambda: (torch.randn(2, 8),)),
    "words": (Words, lambda: (torch.randn(1, 2, 4, 3), torch.tensor([0, 5]))),
    "alpha": (Alpha, lambda: (torch.randn(2, 3), torch.randn(2, 3))),
    "counter": (Counter, lambda: (torch.randn(2),)),
}


def make(kind):
    """The model, its BatchNorm statistics from a data pass, and an example of its inputs."""
    torch.manual_seed(3)
    model, example = _ALL[kind][0](), _ALL[kind][1]()
    if kind == "cnn":
        model.norm.momentum = None
        model(torch.randn(64, 3, 8, 9))
    return model.eval(), example


def write(folder):
    """Write every model for both backends; kind -> {"pytorch", "portable", "xnnpack"}."""
    found = {}
    for kind in _ALL:
        model, example = make(kind)
        paths = {name: str(Path(folder) / f"{kind}.{name}.pte") for name in ("portable", "xnnpack")}
        paths["pytorch"] = str(Path(folder) / f"{kind}.pt2")
        torch.export.save(torch.export.export(model, example), paths["pytorch"])
        for backend in ("portable", "xnnpack"):
            convert(paths["pytorch"], paths[backend], backend)
        found[kind] = paths
    return found


def convert(source, out, backend, example=None):
    """Convert one program; returns the reply."""
    from trueport.converters import executorch
    from trueport.frameworks import torch as framework

    signature = framework.signature(source, trust=False)
    arrays = {} if example is None else {signature["inputs"][0]["name"]: np.asarray(example)}
    context = {"signature": signature, "example": arrays, "calibration": {}, "trust": False}
    return executorch.convert("executorch", source, out, {"backend": backend}, context)


def open_batch(path):
    """A program whose batch is open."""
    model, (example,) = make("cnn")
    batch = {"image": {0: torch.export.Dim("n", min=1)}}
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=batch), path)


def example(kind, runs, seed):
    """Inputs by the names of the .pte, [R, *shape]."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for place, tensor in enumerate(make(kind)[1]):
        shape = (runs, *tensor.shape)
        floats = tensor.dtype.is_floating_point
        made = torch.randn(shape, generator=generator) if floats else torch.randint(0, 6, shape, generator=generator)
        found[f"input_{place}"] = made.numpy()
    return found


def reference(kind, inputs):
    """What PyTorch computes, by the names of the .pte."""
    model, _ = make(kind)
    rows = []
    for run in range(len(inputs["input_0"])):
        with torch.no_grad():
            given = [torch.from_numpy(np.array(inputs[f"input_{place}"][run])) for place in range(len(inputs))]
            result = model(*given)
        rows.append([item.numpy() for item in (result if isinstance(result, tuple) else (result,))])
    return {f"output_{place}": np.stack([row[place] for row in rows]) for place in range(len(rows[0]))}


def stages(inputs):
    """What PyTorch computes on the way through the convolutional model, by ONNX operator."""
    model, _ = make("cnn")
    with torch.no_grad():
        rows = [model.stages(torch.from_numpy(np.array(row))) for row in inputs["input_0"]]
    return {name: np.stack([row[name].numpy() for row in rows]) for name in rows[0]}
