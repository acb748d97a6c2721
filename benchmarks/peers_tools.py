"""What a person can run today to find the faulty node of a converted model: one function for each tool.

Runs in a toolchain's own interpreter and imports nothing of ours. Every function compares a reference with a target on
the given inputs and returns {"rows": [...], "seconds": ..., "versions": {...}}; a row is one compared value of the target,
{"value": its name, "bad": whether the tool's own default threshold is passed (None: it has none), "error": the size that
the tool gives}. The seconds leave the imports out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
Report = dict[str, Any]


def _report(rows: list[dict[str, Any]], started: float, *packages: str) -> Report:
    seconds = round(time.perf_counter() - started, 3)
    return {"rows": rows, "seconds": seconds, "versions": {name: version(name) for name in packages}}


def _row(value: str, bad: bool | None, error: float) -> dict[str, Any]:
    """Non-finite errors count as the largest: JSON has no word for them."""
    return {"value": value, "bad": bad, "error": float(error) if np.isfinite(error) else 1e300}


def _runs(inputs: Arrays) -> list[dict[str, np.ndarray]]:
    """[R, *shape] each -> one dictionary of inputs per run."""
    count = next(iter(inputs.values())).shape[0]
    return [{name: np.ascontiguousarray(array[run]) for name, array in inputs.items()} for run in range(count)]


def _onnx_names(path: str, inputs: Arrays) -> dict[str, np.ndarray]:
    """The inputs under the names that this file gives them, in its order."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {constant.name for constant in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    return dict(zip(names, inputs.values(), strict=True))


def polygraphy(reference: str, target: str, inputs: Arrays) -> Report:
    """`polygraphy run --onnxrt --onnx-outputs mark all` on both files, compared with its default tolerances."""
    from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs, OnnxFromPath
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator
    from polygraphy.constants import MARK_ALL
    from polygraphy.logger import G_LOGGER

    started = time.perf_counter()
    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    outcome = []
    for path in (target, reference):
        session = SessionFromOnnx(BytesFromOnnx(ModifyOutputs(OnnxFromPath(path), outputs=MARK_ALL)))
        feeds = _runs(_onnx_names(path, inputs))
        results = Comparator.run([OnnxrtRunner(session, name=path)], data_loader=feeds)
        outcome.append(results[0])
    both = type(results)([outcome[0], (reference + "#reference", outcome[1][1])])
    worst: dict[str, tuple[bool, float]] = {}
    for accuracy in Comparator.compare_accuracy(both):
        for iterations in accuracy.values():
            for iteration in iterations:
                for name, result in iteration.items():
                    known = isinstance(result, bool)  # a shape that differs is no more than False
                    error = (0.0 if result else np.inf) if known else float(result.max_absdiff)
                    bad, before = worst.get(name, (False, 0.0))
                    worst[name] = (bad or not result, max(before, error))
    rows = [_row(name, bad, error) for name, (bad, error) in worst.items()]
    return _report(rows, started, "polygraphy", "onnxruntime")


def activations(reference: str, target: str, inputs: Arrays) -> Report:
    """ONNX Runtime's `qdq_loss_debug`: activations of both files, paired by name, and the ratio that it computes.

    Its own `create_activation_matching` pairs names that end in its quantizer's suffixes only, so the pairing is by name
    here. It has no threshold. The error is the ratio of noise to signal in decibels: the larger, the worse.
    """
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import qdq_loss_debug as debug

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, path: str) -> None:
            self.left: Iterator[dict[str, np.ndarray]] = iter(_runs(_onnx_names(path, inputs)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    started = time.perf_counter()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate((reference, target)):
            augmented = str(Path(folder) / f"{number}.onnx")
            debug.modify_model_output_intermediate_tensors(path, augmented)
            found.append(debug.collect_activations(augmented, Reader(path)))
    rows = []
    for name in found[1]:
        if name in found[0]:
            left, right = ([np.ravel(array) for array in side[name]] for side in found)
            same = [array.size for array in left] == [array.size for array in right]
            ratio = debug.compute_signal_to_quantization_noice_ratio(left, right) if same else -np.inf
            rows.append(_row(name, None, -ratio))
    return _report(rows, started, "onnxruntime")


def torch_verification(reference: str, target: str, inputs: Arrays) -> Report:
    """`torch.onnx.verification.verify_onnx_program(..., compare_intermediates=True)` of the file against the program.

    The threshold is that of the warnings which it logs: 0.01 absolute, 0.1 relative. All runs go in as one batch. The
    outputs are asked for a second time by themselves: a file may name them otherwise than the program does.
    """
    import logging

    import onnx_ir
    import torch
    from torch.onnx.verification import verify_onnx_program

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(torch.export.load(reference), dynamo=True, verbose=False)
    assert program is not None
    started = time.perf_counter()
    program.model = onnx_ir.load(target)
    given = tuple(torch.from_numpy(array.reshape(-1, *array.shape[2:]).copy()) for array in inputs.values())
    found = [*verify_onnx_program(program, given, compare_intermediates=True), *verify_onnx_program(program, given)]
    rows = []
    for info in found:
        bad = bool(info.max_abs_diff > 0.01 or info.max_rel_diff > 0.1)
        rows.append(_row(str(info.name), bad, info.max_abs_diff))
    return _report(rows, started, "torch", "onnxruntime")


def onnx2tf_pairs(reference: str, out: str) -> Report:
    """Convert with `-cotof` and keep its table of which ONNX tensor became which TFLite tensor, as `out`."""
    import onnx2tf

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.onnx"
        copy.write_bytes(Path(reference).read_bytes())
        onnx2tf.convert(
            input_onnx_file_path=str(copy),
            output_folder_path=folder,
            verbosity="error",
            check_onnx_tf_outputs_elementwise_close_full=True,
        )
        made = next(Path(folder).glob("*_tensor_correspondence_report.json"))
        Path(out).write_bytes(made.read_bytes())
    return _report([], started, "onnx2tf")


def onnx2tf_check(reference: str, target: str, inputs: Arrays, pairs: str) -> Report:
    """The report of each operator's error that `onnx2tf -cotof` writes, on this TFLite file; its threshold is 1e-4 absolute."""
    from onnx2tf.utils.flatbuffer_direct_op_error_report import generate_op_error_report

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        given: list[list[str]] = []
        for name, array in _onnx_names(reference, inputs).items():
            path = Path(folder) / f"{len(given)}.npy"
            np.save(path, array[0])
            given.append([name, str(path)])
        made = generate_op_error_report(
            onnx_path=reference,
            tflite_path=target,
            output_dir=folder,
            tensor_correspondence_report=pairs,
            custom_input_op_name_np_data_path=given,
            verbose=False,
        )
    compared = [record for record in made["report"]["records"] if record["status"] == "compared"]
    rows = [_row(one["tflite_tensor_name"], not one["allclose"], one["max_abs"]) for one in compared]
    return _report(rows, started, "onnx2tf", "ai-edge-litert")
