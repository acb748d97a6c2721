"""Kernels of branches and loops, whose networks change the values around them by name.

Inside, a name stands for one value that changes; outside, what a branch or a loop leaves behind are results of its own.
"""

from __future__ import annotations

from typing import Any, Callable

from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_program import Call, Evaluator, Operation

Values = dict[str, Any]
_NEAR_ZERO = 1e-6
"""The format takes a condition of at most this size for false."""


class _Break(Exception):
    """The loop around is to end."""


class _Continue(Exception):
    """The loop around is to begin its next turn."""


def _true(value: Any) -> bool:
    return abs(float(value.reshape(-1)[0])) > _NEAR_ZERO


def _execute(operations: list[Operation], values: Values, evaluator: Evaluator) -> None:
    for operation in operations:
        control = _CONTROL.get(operation.kind)
        if control is not None:
            control(operation, values, evaluator)
        else:
            values.update(zip(operation.outputs, evaluator.call(operation, values)))


def _branch(operation: Operation, values: Values, evaluator: Evaluator) -> None:
    condition = evaluator.value(operation.inputs["x"][0], values)
    _execute(operation.blocks[0 if _true(condition) else 1].operations, values, evaluator)


def _loop(operation: Operation, values: Values, evaluator: Evaluator) -> None:
    condition, body = operation.blocks
    bound = operation.inputs.get("x")
    limit = int(operation.attributes["maxLoopIterations"])
    if bound:
        limit = int(evaluator.value(bound[0], values).reshape(-1)[0])
    endless = not bound and limit == 0 and bool(condition.operations)
    turn = 0
    while endless or turn < limit:
        _execute(condition.operations, values, evaluator)
        if condition.operations and not _true(evaluator.value(operation.attributes["conditionVar"], values)):
            return
        try:
            _execute(body.operations, values, evaluator)
        except _Break:
            return
        except _Continue:
            pass
        turn += 1
    # The condition is asked once more after the last turn: what it computes is visible outside.
    _execute(condition.operations, values, evaluator)


def _break(operation: Operation, values: Values, evaluator: Evaluator) -> None:
    raise _Break


def _continue(operation: Operation, values: Values, evaluator: Evaluator) -> None:
    raise _Continue


_CONTROL: dict[str, Callable[[Operation, Values, Evaluator], None]] = {
    "nn.branch": _branch,
    "nn.loop": _loop,
    "nn.loopBreak": _break,
    "nn.loopContinue": _continue,
}


def run(call: Call) -> Any:
    """Run a branch or a loop in a copy of the values around it; gives what is read after it."""
    operation, values = call.operation, dict(call.scope)
    try:
        _CONTROL[operation.kind](operation, values, call.evaluator)
    except (_Break, _Continue):
        raise Unsupported(f"the layer '{operation.name}' leaves a loop that it is not in") from None
    results = []
    for name in operation.attributes["results"]:
        try:
            results.append(call.evaluator.value(name, values))
        except KeyError:
            raise ValueError(
                f"the {operation.kind} layer '{operation.name}' left without a value for '{name}', which is read after it"
            ) from None
    return tuple(results)


KERNELS: dict[str, Callable[[Call], Any]] = dict.fromkeys(_CONTROL, run)
"""The evaluator's table of branches, loops and the ways out of a loop."""
