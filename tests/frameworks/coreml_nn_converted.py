"""PyTorch modules converted to Core ML neural networks by coremltools, evaluated beside PyTorch. Runs in a worker only."""

from __future__ import annotations

import numpy as np


def _modules():
    """Name -> (module, shapes of its inputs)."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
            self.deep = nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), nn.InstanceNorm2d(8, affine=True)
            )
            self.pool = nn.MaxPool2d(3, 2, padding=1)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.stem(x)
            x = nn.functional.leaky_relu(self.deep(x) + x, 0.2)
            return self.head(self.pool(x).mean((2, 3))).softmax(-1)

    class Sequence(nn.Module):
        def __init__(self, kind, **options):
            super().__init__()
            self.cells = getattr(nn, kind)(6, 4, batch_first=True, **options)

        def forward(self, x):
            return self.cells(x)[0]

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.wide = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

        def forward(self, x):
            y = self.norm(x)
            x = x + self.mix(y, y, y, need_weights=False)[0]
            return x + self.wide(x)

    class Tensors(nn.Module):
        def forward(self, x, y):
            z = torch.cat([x[:, 1:], y.flip(-1)], 1)
            top, places = z.topk(2, -1)
            chosen = torch.where(z > 0.25, z, z * 0.5).clamp(-1, 1.5)
            return (
                top.sum(-1),
                places,
                torch.einsum("bij,bkj->bik", chosen, z),
                z.transpose(1, 2).reshape(2, -1).cumsum(1),
            )

    def pools(**options):
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(3, 2, **options), nn.PReLU(4), nn.LPPool2d(2, 2))

    plane = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ReflectionPad2d((1, 2, 0, 1)), nn.PixelShuffle(2), nn.Hardswish(), nn.Softplus()
    )
    return {
        "residual": (Residual(), [(1, 3, 16, 16)]),
        "lstm": (Sequence("LSTM"), [(2, 5, 6)]),
        "lstm-both-ways": (Sequence("LSTM", bidirectional=True, num_layers=2), [(2, 5, 6)]),
        "gru": (Sequence("GRU"), [(2, 5, 6)]),
        "rnn": (Sequence("RNN"), [(2, 5, 6)]),
        "attention": (Attention(), [(2, 5, 8)]),
        "tensors": (Tensors(), [(2, 3, 4), (2, 3, 4)]),
        "average": (pools(padding=1, count_include_pad=False), [(1, 2, 14, 14)]),
        "average-counted": (pools(padding=1), [(1, 2, 14, 14)]),
        "enlarge": (
            nn.Sequential(
                nn.ConvTranspose2d(2, 4, 3, 2, padding=1, output_padding=1, groups=2),
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Upsample(scale_factor=2, mode="nearest"),
            ),
            [(1, 2, 5, 6)],
        ),
        "aligned": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), [(1, 2, 5, 6)]),
        "plane": (plane, [(1, 2, 6, 7)]),
        "volume": (
            nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(2)),
            [(1, 2, 4, 6, 6)],
        ),
        "embedding": (nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 3)), [(2, 5)]),
    }


def convert(name, bits=None, mode="linear"):
    """[(what PyTorch gives, what the evaluated network gives)] for each output, and the layers that the converter wrote."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    import coremltools as ct
    from coremltools.models.neural_network.quantization_utils import quantize_weights

    from trueport.frameworks import _coreml_nn
    from trueport.frameworks._coreml_program import Evaluator

    torch.manual_seed(3)
    module, shapes = _modules()[name]
    module.eval()
    for part in module.modules():  # running statistics of a fresh norm are 0 and 1, which hides mistakes
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2)
    ids = name == "embedding"
    values = [torch.randint(0, 11, shape, dtype=torch.int32) if ids else torch.randn(*shape) for shape in shapes]
    traced = torch.jit.trace(module, values, check_trace=False)
    inputs = [
        ct.TensorType(name=f"in{index}", shape=shape, dtype=np.int32 if ids else np.float32)
        for index, shape in enumerate(shapes)
    ]
    model = ct.convert(traced, inputs=inputs, convert_to="neuralnetwork", minimum_deployment_target=ct.target.iOS14)
    if bits:
        model = quantize_weights(model, bits, quantization_mode=mode)
        model = model if hasattr(model, "get_spec") else ct.models.MLModel(model)
    spec = model.get_spec() if hasattr(model, "get_spec") else model
    program = _coreml_nn.read(spec)
    found = {}
    evaluator = Evaluator(program, _coreml_nn.KERNELS, wanted=list(program.outputs))
    evaluator.run({f"in{index}": value.numpy() for index, value in enumerate(values)}, emit=found.__setitem__)
    with torch.no_grad():
        right = module(*values)
    right = right if isinstance(right, tuple) else (right,)
    pairs = [[value.numpy(), np.array(found[output])] for value, output in zip(right, program.outputs, strict=True)]
    return {
        "pairs": pairs,
        "layers": program.meta["layers"],
        "weights": program.meta["weights"],
        "unpacked": _unpacked_by_coremltools(spec, program) if bits and bits < 16 else [],
    }


def _unpacked_by_coremltools(spec, program):
    """[(name, what coremltools makes of the compressed weights of a layer, what we make of them)]."""
    from coremltools.models.neural_network.quantization_utils import _dequantize_wp

    found = []
    for layer in spec.neuralNetwork.layers:
        kind = layer.WhichOneof("layer")
        if kind not in ("convolution", "innerProduct"):
            continue
        field = getattr(layer, kind)
        convolution = kind == "convolution"
        rest = (field.kernelChannels, *field.kernelSize) if convolution else (field.inputChannels,)
        ours = np.array(program.constants[f"{layer.name}.weights"].load())
        weights = type(field.weights)()
        weights.CopyFrom(field.weights)
        _dequantize_wp(weights, (field.outputChannels, *rest))
        found.append([layer.name, np.array(weights.floatValue, np.float32), ours.ravel()])
    return found
