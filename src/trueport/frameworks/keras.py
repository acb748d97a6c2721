"""Stub."""

from __future__ import annotations

from pathlib import Path

NAME = "keras"
FORMATS = {"keras": "tensorflow"}
SUFFIXES = {"keras": ".keras"}
VARIANTS = ("default",)
PRECISIONS = ("float32",)


def sniff(head: bytes, path: Path) -> str | None:
    """Tell this framework's formats."""
    return None
