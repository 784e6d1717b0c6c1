"""From a trained network to label maps in the space of the scans they came from."""
