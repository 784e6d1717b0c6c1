"""Scores out: metrics in millimetres, tables per case and label, pictures and the report."""
