"""The table of toolchains that ships with the package, its locks, and what a variant may ask for."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import wheelhouse

from trueport.envs import EnvStore
from trueport.errors import UsageError
from trueport.outcome import Ok
from trueport.toolchains import Variant, cache_folder, package_name, toolchains

ROOT = Path(__file__).resolve().parents[2]
NAMES = list(toolchains())


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("lock_script", ROOT / "scripts" / "lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_the_toolchains_that_the_steps_name():
    assert set(NAMES) >= {"onnx", "torch", "tensorflow", "tf-keras", "litert", "litert-torch", "onnx2tf", "onnx2torch"}


def test_every_lock_belongs_to_a_row():
    assert sorted(path.stem for path in (ROOT / "src" / "trueport" / "locks").glob("*.txt")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_holds_sorted_exact_public_versions_and_nothing_of_cuda(name, script):
    lock = toolchains()[name].lock
    assert lock
    assert list(lock) == sorted(lock, key=lambda line: line.split("==")[0])
    for line in lock:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line
        assert not script.CUDA.fullmatch(line.split("==")[0]), line
    packages = [line.split("==")[0] for line in lock]
    assert len(set(packages)) == len(packages)


@pytest.mark.parametrize("name", NAMES)
def test_every_requirement_is_in_the_lock(name):
    row = toolchains()[name]
    locked = {package_name(line) for line in row.lock}
    assert {package_name(one) for one in row.requirements} <= locked
    assert "numpy" in locked, "the worker needs it"


@pytest.mark.parametrize("name", NAMES)
def test_the_health_check_is_an_import_of_what_the_toolchain_is_for(name):
    row = toolchains()[name]
    assert re.fullmatch(r"import \w[\w.]*(, \w[\w.]*)*", row.health)
    assert row.first_module in row.health
    assert row.purpose


def test_a_package_beside_pytorch_that_is_compiled_against_it_takes_the_registrys_build():
    for row in toolchains().values():
        if row.contains("torchvision"):
            assert row.registry_torch, row.name
        if row.contains("torch"):
            assert row.torch, row.name


def test_contains_knows_dependencies_and_spellings():
    row = wheelhouse.toolchain(requirements=("Tiny_Thing>=1",), lock=("tiny-thing==1.0", "dep==1.0"))
    assert [row.contains(one) for one in ("tiny.thing", "dep==2.0", "de")] == [True, True, False]


@pytest.mark.parametrize(
    ("health", "module"),
    [("import a", "a"), ("import a.b, c", "a.b"), ("import a; import b", "a")],
)
def test_the_first_module_is_the_framework(health, module):
    assert wheelhouse.toolchain(health=health).first_module == module


@pytest.mark.parametrize(
    "package",
    [
        "onnx",
        "onnx=1.0",
        "onnx>=1.0",
        "onnx==",
        "==1.0",
        "onnx==1.*",
        "onnx==1.0,<2",
        "onnx == 1.0",
        "-r x==1",
        "--index-url==1",
        "onnx==v1",
        "",
    ],
)
def test_a_package_without_one_version_is_refused(package):
    with pytest.raises(UsageError, match="write it as NAME==VERSION"):
        Variant(packages=(package,))


@pytest.mark.parametrize(
    "package", ["onnx==1.20.1", "tf_keras==2.21.0", "torch==2.13.0+cpu", "x==1.0rc1", "x==2!1.0.post1"]
)
def test_a_package_with_one_version_is_taken(package):
    assert Variant(packages=(package,)).packages == (package.replace("_", "-"),)


def test_two_versions_of_one_package_are_refused():
    with pytest.raises(UsageError, match="two versions of 'onnx'"):
        Variant(packages=("onnx==1.0", "ONNX==1.1"))


@pytest.mark.parametrize(
    "day", ["yesterday", "2025-13-01", "2025-02-30", "20251125", "2025-11-25T00:00", "25-11-2025", ""]
)
def test_a_malformed_day_is_refused(day):
    with pytest.raises(UsageError, match="YYYY-MM-DD"):
        Variant(as_of=day)


def test_packages_for_an_interpreter_of_the_users_own_are_refused():
    for more in ({"packages": ("onnx==1.0",)}, {"as_of": "2025-01-01"}):
        with pytest.raises(UsageError, match="leave out --with and --as-of, or --python"):
            Variant(python=Path("python"), **more)


def test_the_cache_folder_follows_the_setting(monkeypatch):
    monkeypatch.setenv("TRUEPORT_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("TRUEPORT_CACHE")
    assert cache_folder().name == "trueport"


def test_lock_lines_drop_local_versions_and_cuda(script):
    versions = {
        "torch": "2.13.0+cpu",
        "nvidia-cublas": "13.1",
        "cuda-toolkit": "13",
        "triton": "3.7",
        "attrs": "26.1",
        "cudaless": "1",
    }
    assert script.lock_lines(versions) == ["attrs==26.1", "cudaless==1", "torch==2.13.0"]


def test_the_lock_script_keeps_pins_and_upgrades(script, tmp_path, monkeypatch, capsys):
    wheels = tmp_path / "wheels"
    wheelhouse.isolate(monkeypatch, wheels)
    for version in ("1.0", "2.0"):
        wheelhouse.wheel(wheels, "tiny", version, requires=["dep"])
        wheelhouse.wheel(wheels, "dep", version)
    row = wheelhouse.toolchain(lock=("dep==1.0",))
    final = tmp_path / "tiny.txt"
    script.lock(row, upgrade=False, pins=[], folder=tmp_path)
    assert final.read_text() == "dep==1.0\ntiny==2.0\n"
    assert "tiny: - -> 2.0" in capsys.readouterr().out
    script.lock(row, upgrade=False, pins=["tiny==1.0"], folder=tmp_path)
    assert final.read_text() == "dep==1.0\ntiny==1.0\n"
    script.lock(row, upgrade=True, pins=[], folder=tmp_path)
    assert final.read_text() == "dep==2.0\ntiny==2.0\n"
    with pytest.raises(SystemExit, match="does not work"):
        script.lock(replace(row, health="import absent"), upgrade=True, pins=[], folder=tmp_path)
    assert final.read_text() == "dep==2.0\ntiny==2.0\n"
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_toolchain_is_built_from_nothing_and_works(name, tmp_path):
    store = EnvStore(tmp_path)
    made = store.create(name)
    assert isinstance(made, Ok), f"{made.message}\n{made.log}"
    assert made.value.locked
    check = store.check(name)
    assert isinstance(check, Ok)
    assert check.value.good, check.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "packages"),
    [("onnx", ("onnxscript==0.5.6",)), ("torch", ("torch==2.9.1", "onnxscript==0.5.6"))],
)
def test_the_dependencies_of_the_day_make_an_old_converter_work(name, packages, tmp_path):
    store = EnvStore(tmp_path)
    made = store.create(name, Variant(packages=packages, as_of="2025-11-25"))
    assert isinstance(made, Ok), f"{made.message}\n{made.log}"
    assert made.value.versions["onnxscript"] == "0.5.6"
