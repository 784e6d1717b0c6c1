"""Measurements, as ratios side by side in one run. Nothing here is asserted; nothing here is installed."""
