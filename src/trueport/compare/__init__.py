"""Comparison: metrics, then the noise floor, then the verdict. Pure functions of arrays."""
