"""Pairs the values inside two models by what they hold, without relying on names."""
