"""Kernels of the recurrent layers: simple, GRU, and LSTM in one or two directions, over [Seq, Batch, size, 1, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trueport.frameworks._coreml_nn_elementwise import ACTIVATIONS
from trueport.frameworks._coreml_nn_kernel import Layer, LayerKernel, need_rank

if TYPE_CHECKING:
    import torch

CLIP = 50.0
"""The format clips what goes into an activation to this range."""

Activation = Callable[[Any], Any]


def _activation(layer: Layer, fields: dict[str, Any], limit: float = CLIP) -> Activation:
    kind = fields["NonlinearityType"]
    if kind not in ACTIVATIONS:
        raise layer.refuse(f"uses the activation '{kind}', which recurrent layers do not have")
    return lambda x: ACTIVATIONS[kind](x.clamp(-limit, limit), fields)


def _lstm_activations(layer: Layer, stored: Sequence[dict[str, Any]]) -> list[Activation]:
    """f and g of the gates, and h of the cell, which the format does not clip there."""
    f, g, h = stored
    return [_activation(layer, f), _activation(layer, g), _activation(layer, h, float("inf"))]


def _sequence(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """[Seq, Batch, size, 1, 1] -> [Seq, Batch, size]."""
    need_rank(layer, x, 5, 5)
    return x.reshape(*x.shape[:2], -1)


def _state(layer: Layer, given: Sequence[torch.Tensor], index: int, like: torch.Tensor, size: int) -> torch.Tensor:
    """A state that is an input [1, Batch, size, 1, 1], or zeros. Gives [Batch, size]."""
    if index < len(given):
        return given[index].reshape(like.shape[1], size)
    return like.new_zeros(like.shape[1], size)


def _column(value: torch.Tensor) -> torch.Tensor:
    """[.., size] -> [.., size, 1, 1]."""
    return value[..., None, None]


def _given_out(layer: Layer, steps: list[torch.Tensor], states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The result, the whole sequence or its last step, and the states as far as the layer has outputs for them."""
    import torch

    shown = torch.stack(steps) if layer.attributes["sequenceOutput"] else steps[-1][None]
    values = (_column(shown), *[_column(state[None]) for state in states])
    return values[: len(layer.call.operation.outputs)]


def _steps(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """The sequence in the order in which the layer reads it."""
    if not layer["reverseInput"]:
        return x
    if layer["sequenceOutput"] and len(x) > 1:
        raise layer.refuse("reads its sequence backwards and gives all of it; in which order is not documented")
    return x.flip(0)


def _joined(layer: Layer, names: Sequence[str]) -> torch.Tensor | None:
    """Stored weights of several gates, one under the other, or None where there are none."""
    import torch

    found = [layer.weight(name) for name in names]
    return None if found[0] is None else torch.cat([value for value in found if value is not None])


def simple(layer: Layer, x: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """y = f(W x + R y + b)."""
    import torch.nn.functional as F

    f, sequence = _activation(layer, layer["activation"]), _steps(layer, _sequence(layer, x))
    y = _state(layer, given, 0, sequence, layer["outputVectorSize"])
    driven = F.linear(sequence, layer.need("weightMatrix"), layer.weight("biasVector"))
    steps = []
    for step in driven:
        y = f(step + F.linear(y, layer.need("recursionMatrix")))
        steps.append(y)
    return _given_out(layer, steps, [y])


_GRU = ("updateGate", "resetGate", "outputGate")


def gru(layer: Layer, x: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A GRU whose reset gate works on the state before the recursion matrix."""
    import torch.nn.functional as F

    f, g = (_activation(layer, fields) for fields in layer["activations"])
    size, sequence = layer["outputVectorSize"], _steps(layer, _sequence(layer, x))
    y = _state(layer, given, 0, sequence, size)
    weight, bias = (
        _joined(layer, [f"{gate}WeightMatrix" for gate in _GRU]),
        _joined(layer, [f"{gate}BiasVector" for gate in _GRU]),
    )
    recursion = [layer.need(f"{gate}RecursionMatrix") for gate in _GRU]
    if weight is None:
        raise layer.refuse("has no weights")
    steps = []
    for step in F.linear(sequence, weight, bias):
        update, reset, output = step.split(size, -1)
        z = f(update + F.linear(y, recursion[0]))
        r = f(reset + F.linear(y, recursion[1]))
        o = g(output + F.linear(y * r, recursion[2]))
        y = (1 - z) * o + z * y
        steps.append(y)
    return _given_out(layer, steps, [y])


_LSTM = ("inputGate", "forgetGate", "blockInput", "outputGate")


def _lstm(
    layer: Layer,
    sequence: torch.Tensor,
    state: tuple[torch.Tensor, torch.Tensor],
    functions: Sequence[Activation],
    prefix: str,
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """One direction: (result of every step [Batch, size], last result, last cell)."""
    import torch.nn.functional as F

    f, g, h = functions
    weight = _joined(layer, [f"{prefix}{gate}WeightMatrix" for gate in _LSTM])
    recursion = _joined(layer, [f"{prefix}{gate}RecursionMatrix" for gate in _LSTM])
    if weight is None or recursion is None:
        raise layer.refuse("has no weights")
    bias = _joined(layer, [f"{prefix}{gate}BiasVector" for gate in _LSTM])
    peephole = [layer.weight(f"{prefix}{gate}PeepholeVector") for gate in ("inputGate", "forgetGate", "outputGate")]
    look = [0.0 if vector is None else vector for vector in peephole]
    limit, forget_bias = layer["cellClipThreshold"], 1.0 if layer["forgetBias"] else 0.0
    (y, c), steps = state, []
    for step in F.linear(sequence, weight, bias):
        i, forget, z, o = (step + F.linear(y, recursion)).chunk(4, -1)
        i, z = f(i + look[0] * c), g(z)
        kept = 1 - i if layer["coupledInputAndForgetGate"] else f(forget + forget_bias + look[1] * c)
        c = (c * kept + i * z).clamp(-limit, limit)
        y = h(c) * f(o + look[2] * c)
        steps.append(y)
    return steps, y, c


def _lstm_states(
    layer: Layer, given: Sequence[torch.Tensor], first: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    size = layer["outputVectorSize"]
    return _state(layer, given, first, like, size), _state(layer, given, first + 1, like, size)


def lstm(layer: Layer, x: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """An LSTM in one direction; further inputs and outputs are its state and its cell."""
    functions = _lstm_activations(layer, layer["activations"])
    sequence = _steps(layer, _sequence(layer, x))
    steps, y, c = _lstm(layer, sequence, _lstm_states(layer, given, 0, sequence), functions, "")
    return _given_out(layer, steps, [y, c])


def bidirectional_lstm(layer: Layer, x: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Two LSTMs, the second from the end; their results stand side by side at the places of the input."""
    import torch

    stored = layer["activationsForwardLSTM"]
    forward = _lstm_activations(layer, stored)
    backward = _lstm_activations(layer, layer["activationsBackwardLSTM"] or stored)
    sequence = _sequence(layer, x)
    ahead, y, c = _lstm(layer, sequence, _lstm_states(layer, given, 0, sequence), forward, "forward.")
    back, y_back, c_back = _lstm(
        layer, sequence.flip(0), _lstm_states(layer, given, 2, sequence), backward, "backward."
    )
    if layer["sequenceOutput"]:
        steps = [torch.cat(pair, -1) for pair in zip(ahead, reversed(back))]
    else:
        steps = [torch.cat([y, y_back], -1)]
    return _given_out(layer, steps, [y, c, y_back, c_back])


KERNELS: dict[str, LayerKernel] = {
    "simpleRecurrent": simple,
    "gru": gru,
    "uniDirectionalLSTM": lstm,
    "biDirectionalLSTM": bidirectional_lstm,
}
