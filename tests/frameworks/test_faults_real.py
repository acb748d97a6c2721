"""The fault battery on real frameworks: a worker killed in the middle of a conversion, and memory limits that bite."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
import time
from pathlib import Path

import pytest

from trueport.outcome import Failure, Kind, Ok, Stage
from trueport.worker import process
from trueport.worker.pool import Pool

ONNX = """
import os, time

def model(path, layers):
    import numpy as np, onnx
    from onnx import helper, numpy_helper
    names = [f"v{index}" for index in range(layers + 1)]
    weight = numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", [old, "w"], [new]) for old, new in zip(names, names[1:])]
    value = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 64])
    graph = helper.make_graph(nodes, "g", [value(names[0])], [value(names[-1])], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)

def simplify(path, out, started):
    import onnx, onnxsim
    loaded = onnx.load(path)
    open(started, "w").close()
    while True:
        simple, _ = onnxsim.simplify(loaded)
        onnx.save(simple, out)
"""

TENSORFLOW = """
def allocate(count):
    import tensorflow as tf
    return float(tf.reduce_sum(tf.zeros([int(count)]) + 1.0))

def compiled(count):
    import tensorflow as tf
    function = tf.function(lambda seed: tf.sort(tf.random.normal([int(count)]))[:1] + seed, jit_compile=True)
    return float(function(tf.zeros([1]))[0])

def threads(count):
    import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(int(count))
    tf.config.threading.set_inter_op_parallelism_threads(int(count))
    return float(tf.reduce_sum(tf.random.normal([4, 4])))

def version():
    import tensorflow
    return tensorflow.__version__
"""


@pytest.fixture
def own_pool(tmp_path):
    with Pool(folder=tmp_path / "pool", timeout=120) as pool:
        yield pool


def module(tmp_path, text):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "job.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return {"stage": Stage.CONVERT, "paths": [str(folder)]}


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_killed_in_mid_conversion(own_pool, env, tmp_path, by):
    python, options = env("onnx"), module(tmp_path, ONNX)
    path, out, started = (str(tmp_path / name) for name in ("m.onnx", "out.onnx", "started"))
    assert isinstance(own_pool.call(python, "job", "model", {"path": path, "layers": 200}, **options), Ok)
    (worker,) = own_pool._workers

    def kill():
        deadline = time.monotonic() + 60
        while not Path(started).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(worker.process.pid, by)

    killer = threading.Thread(target=kill)
    killer.start()
    arguments = {"path": path, "out": out, "started": started}
    outcome = own_pool.call(python, "job", "simplify", arguments, **options)
    killer.join()
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.stage) == (Kind.CRASHED, Stage.CONVERT)
    assert by.name in outcome.message
    assert not process._marked(worker._mark)
    after = own_pool.call(
        python, "trueport.frameworks.onnx", "signature", {"path": path, "trust": False}, stage=Stage.LOAD
    )
    assert after.value.value["inputs"][0]["shape"] == ["batch", 64]


@pytest.mark.parametrize("function", ["allocate", "compiled"])
def test_tensorflow_hits_the_memory_limit(own_pool, env, tmp_path, function):
    python, options = env("tensorflow"), module(tmp_path, TENSORFLOW)
    outcome = own_pool.call(python, "job", function, {"count": 5e8}, memory=1.5e9, **options)
    assert isinstance(outcome, Failure)
    assert outcome.kind == Kind.OUT_OF_MEMORY, outcome
    assert not own_pool._workers, "a worker that ran out of memory is not used again"
    assert isinstance(own_pool.call(python, "job", "version", {}, memory=1.5e9, **options), Ok)


def test_tensorflow_within_the_limit_works(own_pool, env, tmp_path):
    python, options = env("tensorflow"), module(tmp_path, TENSORFLOW)
    outcome = own_pool.call(python, "job", "allocate", {"count": 1e7}, memory=1e9, **options)
    assert outcome.value.value == 1e7


def test_tensorflow_threads_that_cannot_start_end_in_an_honest_failure(own_pool, env, tmp_path):
    """Its thread pools abort or wait for ever when a stack is refused: never later than the time limit, and never as a result."""
    python, options = env("tensorflow"), module(tmp_path, TENSORFLOW)
    assert isinstance(own_pool.call(python, "job", "version", {}, **options), Ok)
    started = time.monotonic()
    outcome = own_pool.call(python, "job", "threads", {"count": 4000}, memory=2e8, timeout=30, **options)
    assert time.monotonic() - started < 35
    assert isinstance(outcome, Failure)
    assert outcome.kind in (Kind.OUT_OF_MEMORY, Kind.CRASHED), outcome
    assert not own_pool._workers


def test_extension_types_cross_as_the_numbers_they_stand_for(own_pool, env, tmp_path):
    text = """
    def arrays():
        import ml_dtypes, numpy as np
        return {
            "bfloat16": np.array([1.5, -2.0], ml_dtypes.bfloat16),
            "float8": np.array([0.5, 448.0], ml_dtypes.float8_e4m3fn),
            "int4": np.array([-8, 7], ml_dtypes.int4),
            "uint4": np.array([0, 15], ml_dtypes.uint4),
        }
    """
    found = own_pool.call(env("onnx"), "job", "arrays", {}, **module(tmp_path, text)).value.value
    assert {name: (array.dtype.name, array.tolist()) for name, array in found.items()} == {
        "bfloat16": ("float32", [1.5, -2.0]),
        "float8": ("float32", [0.5, 448.0]),
        "int4": ("int8", [-8, 7]),
        "uint4": ("int8", [0, 15]),
    }
