"""Fixtures shared by all tests: a pool of workers and the toolchain environments (built once, shared, cached)."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from trueport.envs import EnvStore
from trueport.outcome import Failure
from trueport.worker.pool import Pool

# A run that was started in the background ignores ^C, and so would everything that the tests start and interrupt.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CORPUS = Path(os.environ.get("TRUEPORT_CORPUS", Path(__file__).resolve().parents[2] / "shared" / "corpus"))


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real models and data; tests that use it skip when it is absent."""
    if not (CORPUS / "models").is_dir():
        pytest.skip("the corpus of real models is not beside the checkout (set TRUEPORT_CORPUS)")
    return CORPUS


@pytest.fixture(scope="session")
def pool():
    with Pool(timeout=300) as pool:
        yield pool


@pytest.fixture(scope="session")
def env():
    """env(name) -> path of the interpreter of that toolchain, built on first use."""
    store = EnvStore()

    def get(name: str) -> Path:
        outcome = store.get(name)
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.python

    return get
