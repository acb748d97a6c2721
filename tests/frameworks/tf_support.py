"""What the TensorFlow tests share: a zoo saved once, calls into workers, and feeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trueport.outcome import Failure, Stage

HERE = str(Path(__file__).parent)


class Tf:
    """Calls into the workers of one toolchain, with results unpacked."""

    def __init__(self, pool, python):
        self.pool, self.python = pool, python

    def outcome(self, module, function, emit=False, **arguments):
        """Whatever the worker answered."""
        return self.pool.call(
            self.python, module, function, arguments, stage=Stage.RUN, emit=emit, paths=[HERE], timeout=240
        )

    def __call__(self, module, function, **arguments):
        """The value of a call that has to succeed."""
        result = self.outcome(module, function, **arguments)
        assert not isinstance(result, Failure), f"{result.message}\n{result.log[-1500:]}"
        return result.value.value

    def emitted(self, module, function, **arguments):
        """The arrays that a call emitted, and its value."""
        result = self.outcome(module, function, emit=True, **arguments)
        assert not isinstance(result, Failure), f"{result.message}\n{result.log[-1500:]}"
        return result.value.emitted, result.value.value

    def run(self, module, path, inputs, precision="float32", variant="default", trust=False):
        """Outputs of one case."""
        return self(
            f"trueport.frameworks.{module}",
            "run",
            path=str(path),
            cases={"case": inputs},
            precision=precision,
            variant=variant,
            trust=trust,
        )["case"]

    def signature(self, module, path, trust=False):
        """The signature."""
        return self(f"trueport.frameworks.{module}", "signature", path=str(path), trust=trust)


def feeds(signature, runs=3, batch=2, seed=0):
    """Random inputs [R, *shape] for a signature; integers over their whole legal range."""
    rng = np.random.default_rng(seed)
    found = {}
    for spec in signature["inputs"]:
        shape = [runs, *(size if isinstance(size, int) else batch for size in spec["shape"])]
        if "int" in spec["dtype"]:
            found[spec["name"]] = rng.integers(0, spec.get("maximum", 5) + 1, shape).astype(spec["dtype"])
        else:
            found[spec["name"]] = rng.normal(size=shape).astype(spec["dtype"])
    return found


def deviation(value, reference):
    """Root mean square of the difference over that of the reference's input-dependent part."""
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    assert value.shape == reference.shape
    spread = np.sqrt(np.mean((reference - reference.mean(axis=(0, 1), keepdims=True)) ** 2))
    return float(np.sqrt(np.mean((value - reference) ** 2)) / spread)


def context(signature, inputs, batch=1, trust=False):
    """A conversion context whose example and calibration data come from these inputs."""
    return {
        "signature": signature,
        "example": {name: value[0][:batch] for name, value in inputs.items()},
        "calibration": dict(inputs),
        "trust": trust,
    }
