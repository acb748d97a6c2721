"""The doctor says what works, what does not, and what to do."""

from __future__ import annotations

import sys
from collections import namedtuple

import pytest
import wheelhouse

from trueport import doctor
from trueport.envs import EnvStore, Variant
from trueport.outcome import Ok


@pytest.fixture
def store(tmp_path, monkeypatch):
    wheels = tmp_path / "wheels"
    wheelhouse.isolate(monkeypatch, wheels)
    for version in ("1.0", "2.0"):
        wheelhouse.wheel(wheels, "tiny", version)
    return EnvStore(tmp_path / "cache", table={"tiny": wheelhouse.toolchain(lock=("tiny==1.0",))})


def find(name, store):
    [check] = [check for check in doctor.checks(store) if check.name == name]
    assert bool(check.cure) == (check.ok is not True), check
    return check


def test_a_machine_that_can_run_the_tests_is_healthy(store):
    found = {check.name: check for check in doctor.checks(store)}
    assert {"python", "uv", "cache folder", "disk space", "memory", "memory limit"} < found.keys()
    assert all(found[name].ok for name in ("python", "uv", "cache folder", f"python {wheelhouse.PYTHON}"))
    assert sys.executable in found["python"].detail


def test_a_toolchain_is_not_built_then_built(store):
    check = find("toolchain tiny", store)
    assert check.ok is None
    assert "trueport envs create tiny" in check.cure
    assert isinstance(store.get("tiny", Variant(packages=("tiny==2.0",))), Ok)
    assert find("toolchain tiny", store).ok is None, "a variant is not the toolchain"
    assert isinstance(store.get("tiny"), Ok)
    assert find("toolchain tiny", store).ok is True


def test_an_interpreter_that_is_missing_names_who_needs_it(store, monkeypatch):
    monkeypatch.delenv("TRUEPORT_PYTHON_3_4", raising=False)
    store.table = {"old": wheelhouse.toolchain("old", python="3.4"), "tiny": wheelhouse.toolchain()}
    check = find("python 3.4", store)
    assert check.ok is False
    assert check.detail == "none was found; needed by old"
    monkeypatch.setenv("TRUEPORT_PYTHON_3_4", sys.executable)
    assert "TRUEPORT_PYTHON_3_4=" in find("python 3.4", store).detail


def test_a_cache_that_cannot_be_written(tmp_path, store):
    (tmp_path / "cache").write_text("in the way")
    check = find("cache folder", store)
    assert check.ok is False
    assert "TRUEPORT_CACHE" in check.cure
    find("disk space", store)


def test_little_space_is_no_fault_but_is_said(store, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1e12, 1e12 - 1e9, 1e9))
    check = find("disk space", store)
    assert check.ok is None
    assert check.detail.startswith("1.0 GB free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1e12, 0, 1e12))
    assert find("disk space", store).ok is True


def test_little_memory_is_said(store, monkeypatch):
    memory = namedtuple("memory", "available total")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(1e9, 8e9))
    check = find("memory", store)
    assert (check.ok, check.detail) == (None, "1.0 GB of 8.0 GB available")


@pytest.mark.parametrize(
    ("body", "words"),
    [("exit 1", "does not run"), ("echo uv 0.1.2", "0.1.2 is too old"), ("echo uv x", "does not run")],
)
def test_a_uv_that_is_no_good(store, monkeypatch, tmp_path, body, words):
    path = tmp_path / "uv"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr("uv.find_uv_bin", lambda: str(path))
    check = find("uv", store)
    assert check.ok is False
    assert words in check.detail


def test_no_uv_at_all(store, monkeypatch):
    def nowhere():
        raise FileNotFoundError("gone")

    monkeypatch.setattr("uv.find_uv_bin", nowhere)
    assert find("uv", store).ok is False


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may not enforce it")
def test_the_memory_limit_is_tried_not_assumed(store, monkeypatch):
    assert find("memory limit", store).ok is True
    monkeypatch.setattr("sys.platform", "win32")
    assert doctor._limits().ok is None
