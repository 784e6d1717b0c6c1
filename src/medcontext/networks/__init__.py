"""Networks by name. Each maps ``(B, C, D, H, W)`` to logits ``(B, K, D, H, W)`` and knows nothing of the method."""
