"""The file of a TVM (Relax) model: one uncompressed zip that can be read without TVM and runs nothing when loaded.

    trueport-tvm.json    format, TVM version, inputs and outputs (names, dtypes, shapes), which array is which parameter
    module.json          the IRModule as TVM's own JSON; `main` takes the inputs, then the parameters
    module.txt           the same as text, to be read by people; nothing reads it back
    parameters/N.npy     the parameters, without pickle

TVM has no file format for a module that is not compiled yet; a compiled one is machine code. So the module is kept, and
compiled when it is loaded. A module that calls into libraries by name could do anything, so it needs `trust`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks._base import Arrays, BadModel, SpecDict, Unsupported, Untrusted

FORMAT = "trueport/tvm/1"
HEADER = "trueport-tvm.json"
MODULE = "module.json"
TEXT = "module.txt"
_INLINE = 16
"""Integer constants of at most so many elements stay in the module: shapes and axes, which passes want to see."""
_DATE = (1980, 1, 1, 0, 0, 0)
"""The same model makes the same bytes."""
_FOREIGN = (
    "call_packed",
    "call_dps_packed",
    "call_pure_packed",
    "call_inplace_packed",
    "call_py_func",
    "call_extern",
    "call_pure_extern",
    "call_cpacked",
    "call_llvm",
    "tvm_call",
)
"""Beginnings of the names of operators that call something by its name."""


def is_model(head: bytes) -> bool:
    """Whether these first bytes are those of a zip whose first member is our header."""
    name = HEADER.encode()
    return head[:4] == b"PK\3\4" and head[30 : 30 + len(name)] == name


class Model:
    """A file that has been read. `arrays`: name of a parameter -> its values; `foreign`: what it calls by name."""

    def __init__(
        self, path: str, facts: Mapping[str, Any], module: Any, arrays: Arrays, foreign: Sequence[str] = ()
    ) -> None:
        self.path = path
        self.facts = facts
        self.module = module
        self.arrays = arrays
        self.foreign = foreign

    @property
    def inputs(self) -> list[SpecDict]:
        """What the model takes, in the order of the first parameters of `main`."""
        return list(self.facts["inputs"])

    @property
    def outputs(self) -> list[SpecDict]:
        """What the model gives, in the order of the result of `main`."""
        return list(self.facts["outputs"])


def read(path: str, *, trust: bool) -> Model:
    """Read a file. Raises BadModel for a damaged one, Untrusted for one that calls into libraries by name."""
    model = _read(path, stat(path))
    if model.foreign and not trust:
        raise Untrusted(
            f"{path} calls functions of libraries by name ({model.foreign[0]}), which could do anything; "
            "give --trust to allow it"
        )
    return model


@functools.lru_cache(maxsize=2)
def _read(path: str, modified: int) -> Model:
    import tvm

    try:
        with zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read(HEADER))
            if facts["format"] != FORMAT:
                raise BadModel(f"{path} has the format {facts['format']}; this version reads {FORMAT}")
            arrays = {
                item["name"]: np.load(io.BytesIO(archive.read(item["file"])), allow_pickle=False)
                for item in facts["parameters"]
            }
            text = archive.read(MODULE).decode("utf-8")
        called = foreign(json.loads(text)["nodes"])
        module = tvm.ir.load_json(text)
    except BadModel:
        raise
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise BadModel(f"{path} is damaged, or of another TVM than {tvm.__version__}: {first}") from error
    main = module["main"]
    if len(main.params) != len(facts["inputs"]) + len(arrays):
        raise BadModel(f"{path}: its function takes {len(main.params)} values, its header lists another number")
    return Model(path, facts, module, arrays, called)


def write(
    out: str, module: Any, inputs: Sequence[SpecDict], outputs: Sequence[SpecDict], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write a file by an atomic rename. `arrays`: the parameters, in the order in which `main` takes them."""
    import tvm

    listed = [{"name": name, "file": f"parameters/{place}.npy"} for place, name in enumerate(arrays)]
    facts = {
        "format": FORMAT,
        "tvm": str(tvm.__version__),
        "inputs": list(inputs),
        "outputs": list(outputs),
        "parameters": listed,
    }
    partial = f"{out}.{os.getpid()}.partial"
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        _put(archive, HEADER, json.dumps(facts, indent=1).encode())
        _put(archive, MODULE, tvm.ir.save_json(module).encode())
        _put(archive, TEXT, module.script(show_meta=False).encode())
        for item, array in zip(listed, arrays.values()):
            held = io.BytesIO()
            np.save(held, np.ascontiguousarray(array) if array.ndim else array, allow_pickle=False)
            _put(archive, item["file"], held.getvalue())
    Path(partial).replace(out)


def _put(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, date_time=_DATE), content)


# -- from a frontend's module to a file


def store(
    module: Any, out: str, inputs: Sequence[SpecDict], outputs: Sequence[SpecDict], known: Mapping[str, np.ndarray]
) -> None:
    """Write what a frontend made: every weight becomes a parameter, under the name that an equal array of `known` has."""
    import tvm
    from tvm import relax

    main = module["main"]
    if len(main.params) != len(inputs):
        raise Unsupported(f"TVM's frontend made a function of {len(main.params)} inputs out of {len(inputs)}")
    lifted, arrays = lift(main, known)
    others = {name: function for name, function in module.functions.items() if name.name_hint != "main"}
    whole = tvm.IRModule({**others, tvm.ir.GlobalVar("main"): lifted})
    whole = relax.transform.Normalize()(whole)  # gives the new body its types
    write(out, whole, inputs, outputs, arrays)


def lift(main: Any, known: Mapping[str, np.ndarray]) -> tuple[Any, Arrays]:
    """The function with its weights taken as parameters behind its inputs, and their values by name."""
    from tvm import relax

    names = _named(known)
    taken = {parameter.name for parameter in main.params}
    arrays: Arrays = {}
    variables: list[tuple[Any, Any]] = []

    def variable_of(constant: Any) -> Any:
        for seen, variable in variables:
            if seen.same_as(constant):
                return variable
        array = constant.value.numpy()
        waiting = names.get(_digest(array), [])
        name = _fresh(waiting.pop(0) if waiting else f"constant_{len(arrays)}", taken)
        taken.add(name)
        variable = relax.Var(name, constant.ty)
        variables.append((constant, variable))
        arrays[name] = array
        return variable

    body = substitute(main.body, lambda constant: variable_of(constant) if _is_weight(constant) else constant)
    # The attributes of a frontend hold the very arrays that were taken out.
    lifted = relax.Function(
        [*main.params, *(variable for _, variable in variables)], body, main.ret_ty, is_pure=main.is_pure
    ).with_attr("num_input", len(main.params))
    return lifted.with_attr("global_symbol", "main"), arrays


def _is_weight(constant: Any) -> bool:
    data = constant.value
    size = int(np.prod(data.shape, dtype=np.int64))
    return size > _INLINE or (str(data.dtype).startswith("float") and len(data.shape) > 0)


def substitute(body: Any, replace: Any) -> Any:
    """A body in which every constant is what `replace` gives for it; all else, types and names too, stays."""
    from tvm import relax

    def value_of(value: Any) -> Any:
        if is_constant(value):
            return replace(value)
        if isinstance(value, relax.Tuple):
            return relax.Tuple([value_of(item) for item in value.fields])
        if isinstance(value, relax.Call):
            operands = [value_of(item) for item in value.args]
            return relax.Call(value.op, operands, value.attrs, value.ty_args, ret_ty=value.ty)
        if isinstance(value, relax.If):
            return relax.If(value.cond, substitute(value.true_branch, replace), substitute(value.false_branch, replace))
        return value

    blocks = []
    for block in body.blocks:
        bindings = [
            relax.VarBinding(item.var, value_of(item.value)) if isinstance(item, relax.VarBinding) else item
            for item in block.bindings
        ]
        blocks.append(type(block)(bindings))
    return relax.SeqExpr(blocks, value_of(body.body))


def is_constant(value: Any) -> bool:
    """Whether an expression is a stored tensor."""
    return type(value).__name__ == "GenericConst" and hasattr(value.value, "numpy")


def _digest(array: np.ndarray) -> tuple[str, tuple[int, ...], str]:
    return str(array.dtype), tuple(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _named(known: Mapping[str, np.ndarray]) -> dict[Any, list[str]]:
    found: dict[Any, list[str]] = {}
    for name, array in known.items():
        found.setdefault(_digest(np.asarray(array)), []).append(name)
    return found


def _fresh(name: str, taken: set[str]) -> str:
    wanted, number = name, 0
    while wanted in taken:
        number += 1
        wanted = f"{name}_{number}"
    return wanted


# -- what a module calls


def foreign(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a module calls besides TVM's own operators, from the nodes of its JSON: functions by name, and code it carries."""
    found = set()
    for node in nodes:
        kind, data = str(node.get("type")), node.get("data")
        called = kind == "ir.Op" and str(data).rpartition(".")[2].startswith(_FOREIGN)
        code = kind == "ffi.String" and str(data).startswith("pragma_import")
        if called or code:
            found.add(str(data))
        elif kind.endswith(("ExternFunc", ".Module")):
            found.add(kind)
    return sorted(found)


def stat(path: str) -> int:
    """When the file was last changed, for caches."""
    return Path(path).stat().st_mtime_ns
