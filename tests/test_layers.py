"""Arrows point down only: a module imports from its own layer's package or from lower layers; nobody imports a framework."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "trueport"

LAYERS = (
    ("errors", "outcome"),
    ("frameworks._base", "worker.wire"),
    ("frameworks", "converters", "worker.child"),
    ("plugins",),
    ("artifact", "dtypes", "graph"),
    ("toolchains", "interpreters", "uvtool", "envbuild", "envs", "worker"),
    ("feeds", "preprocess", "reconcile", "live"),
    ("compare",),
    ("session",),
    ("routes", "lineage", "doctor", "publish"),
    ("tracing",),
    ("align",),
    ("verification",),
    ("conversion",),
    ("diagnosis",),
    ("repairs",),
    ("zoo",),
    ("opening",),
    ("results", "api"),
    ("report", "demo", "testing"),
    ("cli",),
)
"""Bottom first. A module belongs to the longest name that it starts with."""

WORKER_SIDE = ("frameworks", "converters", "worker.child", "worker.wire")
WORKER_MAY_IMPORT = ("frameworks", "converters", "worker.wire")
FRAMEWORKS = {
    "torch", "torchvision", "tensorflow", "keras", "tf_keras", "onnx", "onnxruntime", "onnxscript", "onnxsim", "onnxslim",
    "onnxoptimizer", "tf2onnx", "onnx2tf", "onnx2torch", "litert_torch", "ai_edge_litert", "jax", "sklearn", "h5py",
    "jaxlib", "jax2onnx", "flax", "onnx2keras", "onnx_tf", "onnxmltools", "tflite2onnx", "coremltools", "openvino", "tvm",
    "executorch", "timm", "transformers",
}  # fmt: skip


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
        if path != ROOT / "__init__.py"
    }


def layer_of(name: str) -> int:
    found = [
        (len(prefix), index)
        for index, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if name == prefix or name.startswith(prefix + ".")
    ]
    assert found, f"{name} is in no layer; give it one in tests/test_layers.py"
    return max(found)[1]


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module.startswith("trueport") else {module}
    return found


def own(name: str) -> str | None:
    """Return the module of ours that an import reaches, without the package name."""
    if not name.startswith("trueport."):
        return None
    rest = name.removeprefix("trueport.")
    known = modules()
    while rest and rest not in known:
        rest = rest.rpartition(".")[0]
    return rest or None


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down(name):
    for imported in imports(modules()[name]):
        reached = own(imported)
        if reached is not None:
            assert layer_of(reached) <= layer_of(name), f"{name} imports {reached}, which lies above it"


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_framework_at_module_level(name):
    roots = {imported.split(".")[0] for imported in imports(modules()[name], top_only=True)}
    assert not roots & FRAMEWORKS, f"{name} imports {roots & FRAMEWORKS} at module level"


@pytest.mark.parametrize("name", sorted(name for name in modules() if name.startswith(WORKER_SIDE)))
def test_worker_side_code_stands_alone_and_parses_on_old_python(name):
    for imported in imports(modules()[name]):
        reached = own(imported)
        assert reached is None or reached.startswith(WORKER_MAY_IMPORT), f"{name} imports {reached} of the parent"
    ast.parse(modules()[name].read_text(encoding="utf-8"), feature_version=(3, 9))


def test_every_layer_name_exists():
    known = modules()
    for prefixes in LAYERS:
        for prefix in prefixes:
            assert any(name == prefix or name.startswith(prefix + ".") for name in known), (
                f"{prefix} is gone: remove its layer"
            )


def test_importing_trueport_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import trueport; s = time.perf_counter() - t; "
        "import trueport.cli; print(sorted(m for m in sys.modules if '.' not in m)); print(s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout.splitlines()[0]))
    assert not loaded & FRAMEWORKS
