"""Stub."""

from __future__ import annotations

from trueport.frameworks._base import Step

STEPS: tuple[Step, ...] = ()
