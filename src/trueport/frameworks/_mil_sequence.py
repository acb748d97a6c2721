"""MIL operators with a course in time: recurrent layers, loops and branches, lists, states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_program import Call
from trueport.frameworks._mil_values import flag, number, plain, text, whole

Activation = Callable[[Any], Any]

ACTIVATIONS: Mapping[str, Activation] = {
    "linear": lambda x: x,
    "relu": lambda x: x.relu(),
    "sigmoid": lambda x: x.sigmoid(),
    "tanh": lambda x: x.tanh(),
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0.0, 1.0),
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp(0.0, 1.0),
    "scaled_tanh": lambda x: x.tanh(),
}
"""Activations of recurrent layers. An operator has no room for their constants: scaled_tanh has 1 and 1, as coremltools'
own tests of these layers expect."""


def _activation(call: Call, argument: str, default: str) -> Activation:
    name = text(call, argument, default)
    if name not in ACTIVATIONS:
        raise Unsupported(f"{call.operation.kind} with {argument} '{name}' is not covered")
    return ACTIVATIONS[name]


def _steps(call: Call, length: int) -> list[int]:
    direction = text(call, "direction", "forward")
    if direction not in ("forward", "reverse"):
        raise Unsupported(f"{call.operation.kind} with direction '{direction}' is not covered")
    return list(range(length)) if direction == "forward" else list(reversed(range(length)))


def _sequence(call: Call, rows: list[Any]) -> Any:
    """All states in the order in which they came, or the last alone: [S, B, H]."""
    import torch

    return torch.stack(rows if flag(call, "output_sequence") else rows[-1:])


def rnn(call: Call) -> Any:
    """h = activation(W_ih · x + W_hh · h + bias) along axis 0 of x [S, B, I]."""
    x, h = call["x"], call["initial_h"]
    inner = x @ call["weight_ih"].T
    if call.get("bias") is not None:
        inner = inner + call["bias"]
    recurrent, activation = call["weight_hh"].T, _activation(call, "activation", "tanh")
    rows = []
    for step in _steps(call, len(x)):
        h = activation(inner[step] + h @ recurrent)
        rows.append(h)
    return _sequence(call, rows), h


def gru(call: Call) -> Any:
    """Gated recurrent unit, gates in the order reset, output, update.

    The reset gate multiplies the state before its matrix product; with `reset_after`, the product and its bias after it.
    """
    x, h = call["x"], call["initial_h"]
    size = h.shape[-1]
    inner = x @ call["weight_ih"].T
    after = flag(call, "reset_after")
    bias = call.get("bias")
    if call.get("input_bias") is not None:
        inner = inner + call["input_bias"]
    if bias is not None and not after:
        inner = inner + bias
    held = bias if bias is not None and after else inner.new_zeros(3 * size)
    gate, activation = _activation(call, "recurrent_activation", "sigmoid"), _activation(call, "activation", "tanh")
    w_reset, w_out, w_update = call["weight_hh"].split(size)
    b_reset, b_out, b_update = held.split(size)
    rows = []
    for step in _steps(call, len(x)):
        i_reset, i_out, i_update = inner[step].split(size, -1)
        reset = gate(i_reset + h @ w_reset.T + b_reset)
        update = gate(i_update + h @ w_update.T + b_update)
        recurrent = reset * (h @ w_out.T + b_out) if after else (reset * h) @ w_out.T
        out = activation(i_out + recurrent)
        h = (1 - update) * out + update * h
        rows.append(h)
    return _sequence(call, rows), h


def _lstm_course(call: Call, suffix: str, steps: list[int], h: Any, c: Any) -> tuple[list[Any], Any, Any]:
    """One direction of an LSTM; gates in the order input, forget, output, cell."""
    import torch

    x = call["x"]
    inner = x @ call[f"weight_ih{suffix}"].T
    if call.get(f"bias{suffix}") is not None:
        inner = inner + call[f"bias{suffix}"]
    recurrent, peephole = call[f"weight_hh{suffix}"].T, call.get(f"peephole{suffix}")
    gate = _activation(call, "recurrent_activation", "sigmoid")
    cell, activation = _activation(call, "cell_activation", "tanh"), _activation(call, "activation", "tanh")
    limit = number(call, "clip", 0.0) if call.get("clip") is not None else 0.0
    p_input, p_forget, p_output = peephole.chunk(3) if peephole is not None else (0.0, 0.0, 0.0)
    rows = []
    for step in steps:
        i, f, o, z = (inner[step] + h @ recurrent).chunk(4, -1)
        c = gate(f + p_forget * c) * c + gate(i + p_input * c) * cell(z)
        c = c.clamp(-limit, limit) if limit else c
        h = gate(o + p_output * c) * activation(c)
        rows.append(h)
    return rows, h, torch.as_tensor(c)


def lstm(call: Call) -> Any:
    """Long short-term memory, forward, reverse, or both with the results side by side; `clip` limits the cell's value."""
    import torch

    x, h, c = call["x"], call["initial_h"], call["initial_c"]
    if text(call, "direction", "forward") != "bidirectional":
        rows, h, c = _lstm_course(call, "", _steps(call, len(x)), h, c)
        return _sequence(call, rows), h, c
    size = h.shape[-1] // 2
    order = list(range(len(x)))
    ahead, h_ahead, c_ahead = _lstm_course(call, "", order, h[:, :size], c[:, :size])
    back, h_back, c_back = _lstm_course(call, "_back", order[::-1], h[:, size:], c[:, size:])
    last_h, last_c = torch.cat([h_ahead, h_back], -1), torch.cat([c_ahead, c_back], -1)
    if not flag(call, "output_sequence"):
        return last_h.unsqueeze(0), last_h, last_c
    rows = [torch.cat(pair, -1) for pair in zip(ahead, reversed(back))]
    return torch.stack(rows), last_h, last_c


# -- control flow

MAX_ROUNDS = 1_000_000
"""A loop that is still running after so many rounds is taken for endless."""


def cond(call: Call) -> Any:
    """One of two blocks."""
    return tuple(call.block(0 if bool(plain(call["pred"].reshape(-1)[0])) else 1))


def while_loop(call: Call) -> Any:
    """The second block on its own results, as long as the first says so."""
    values = call.all("loop_vars")
    for _ in range(MAX_ROUNDS):
        if not bool(plain(call.block(0, values)[0].reshape(-1)[0])):
            return tuple(values)
        values = call.block(1, values)
    raise Unsupported(f"a while_loop did not end within {MAX_ROUNDS} rounds")


# -- lists


def make_list(call: Call) -> Any:
    """A list of `init_length` elements, zeros of the shape that the program gives; where it gives none, they must be written."""
    import torch

    sizes = [plain(size) for size in call.all("elem_shape")] if "elem_shape" in call else [""]
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list) else sizes
    count = whole(call, "init_length", 1)
    if any(isinstance(size, str) for size in sizes):
        return [None] * count
    kind = text(call, "dtype", "fp32")
    dtype = torch.bool if kind == "bool" else torch.int32 if "int" in kind else call.float_type
    return [torch.zeros([int(size) for size in sizes], dtype=dtype)] * count


def _at(call: Call, items: list[Any], index: int) -> Any:
    if not 0 <= index < len(items) or items[index] is None:
        raise IndexError(f"element {index} of a list is read before it is written")
    return items[index]


def list_read(call: Call) -> Any:
    """One element."""
    return _at(call, call["ls"], whole(call, "index", 0))


def list_length(call: Call) -> Any:
    """How many elements there are."""
    import torch

    return torch.tensor(len(call["ls"]), dtype=torch.int32)


def _written(items: list[Any], index: int, value: Any) -> list[Any]:
    items = list(items) + [value.new_zeros(value.shape)] * (index + 1 - len(items))
    items[index] = value
    return items


def list_write(call: Call) -> Any:
    """The list with another element; it grows where the index lies beyond its end."""
    return _written(call["ls"], whole(call, "index", 0), call["value"])


def list_gather(call: Call) -> Any:
    """Elements side by side in a tensor."""
    import torch

    return torch.stack([_at(call, call["ls"], int(index)) for index in plain(call["indices"])])


def list_scatter(call: Call) -> Any:
    """The list with the rows of a tensor as its elements at the indices."""
    items = list(call["ls"])
    for index, row in zip(plain(call["indices"]), call["value"]):
        items = _written(items, int(index), row)
    return items


# -- states


def read_state(call: Call) -> Any:
    """What a state holds now."""
    return call["input"].value.clone()


def write_state(call: Call) -> Any:
    """Put a value into a state."""
    call["input"].value = call["data"].clone()
    return ()


def update_state(call: Call) -> Any:
    """Put a value into a state, and give it."""
    call["state"].value = call["value"].clone()
    return call["value"]


KERNELS: Mapping[str, Callable[[Call], Any]] = {
    "rnn": rnn,
    "gru": gru,
    "lstm": lstm,
    "cond": cond,
    "while_loop": while_loop,
    "make_list": make_list,
    "list_read": list_read,
    "list_length": list_length,
    "list_write": list_write,
    "list_gather": list_gather,
    "list_scatter": list_scatter,
    "read_state": read_state,
    "write_state": write_state,
    "coreml_update_state": update_state,
}
