"""Convert deep-learning models between frameworks, and prove that the port is true."""

from __future__ import annotations

__version__ = "0.1.0"
