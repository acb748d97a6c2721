"""Stub."""

from __future__ import annotations

from pathlib import Path

NAME = "torch"
FORMATS = {"pytorch": "torch"}
SUFFIXES = {"pytorch": ".pytorch"}
VARIANTS = ("default",)
PRECISIONS = ("float32",)


def sniff(head: bytes, path: Path) -> str | None:
    """Tell this framework's formats."""
    return None
