"""Whole pieces of work made of runs: scoring on held-out cases, the demonstration, comparisons."""
