"""Scans in: reading, checking, planning, preparing and sampling labelled data."""
