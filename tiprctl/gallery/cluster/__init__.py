"""Filling a gallery on a Ray cluster."""
