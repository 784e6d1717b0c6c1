"""Supervised losses."""
