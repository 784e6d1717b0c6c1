"""The residual-encoder U-Net against its forward pass, written with functions alone from the weights by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medcontext.networks.registry import build_network

PATCH = (8, 16, 16)
SETTINGS = {
    "features": [4, 6, 6, 8],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 1, 1]],
    "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "blocks": [1, 2, 1, 1],
}
"""Shortcuts of all four kinds: as it is, pooled, projected, and first the one and then the other."""


def normalised(state, key, features, stride=(1, 1, 1)):
    """Convolution and instance normalisation."""
    kernel = state[f"{key}.conv.weight"]
    padding = [side // 2 for side in kernel.shape[2:]]
    features = F.conv3d(features, kernel, state.get(f"{key}.conv.bias"), stride, padding)
    return F.instance_norm(features, weight=state[f"{key}.norm.weight"], bias=state[f"{key}.norm.bias"])


def leaky(features):
    return torch.where(features > 0, features, 0.01 * features)


def residual_block(state, key, features, stride):
    """ResNet-D: the shortcut pools before it projects, and the sum goes through the activation."""
    branch = normalised(state, f"{key}.conv2", leaky(normalised(state, f"{key}.conv1", features, stride)))
    shortcut = F.avg_pool3d(features, stride) if max(stride) > 1 else features
    if branch.shape[1] != features.shape[1]:
        shortcut = normalised(state, f"{key}.skip.{int(max(stride) > 1)}", shortcut)
    return leaky(branch + shortcut)


def forward(state, settings, image):
    """Logits of every stage of the decoder that has a head, finest first."""
    skips = [leaky(normalised(state, "encoder.stem.convs.0", image))]
    for stage, (stride, blocks) in enumerate(zip(settings["strides"], settings["blocks"], strict=True)):
        features = skips[-1]
        for block in range(blocks):
            key = f"encoder.stages.{stage}.blocks.{block}"
            features = residual_block(state, key, features, (1, 1, 1) if block else stride)
        skips.append(features)
    features, logits = skips.pop(), []
    for order, stride in enumerate(reversed(settings["strides"][1:])):
        up = f"decoder.transpconvs.{order}"
        upsampled = F.conv_transpose3d(features, state[f"{up}.weight"], state[f"{up}.bias"], stride)
        joined = torch.cat([upsampled, skips.pop()], dim=1)
        features = leaky(normalised(state, f"decoder.stages.{order}.convs.0", joined))
        if (head := f"decoder.seg_layers.{order}.weight") in state:
            logits.insert(0, F.conv3d(features, state[head], state[head.replace("weight", "bias")]))
    return logits


@pytest.mark.parametrize("deep", [False, True])
def test_the_forward_pass_is_that_of_the_formulas(deep):
    settings = SETTINGS | {"deep_supervision": deep}
    network = build_network("resenc_unet", 2, 3, PATCH, settings, 0).double()
    for parameter in network.parameters():
        # Away from where they start: residual branches from zero, which would hide what is done with them.
        nn.init.normal_(parameter, std=0.5)
    assert network.encoder.stages[1].blocks[1].conv2.norm.weight.all()
    image = torch.randn(2, 2, *PATCH, dtype=torch.float64)
    with torch.no_grad():
        expected = forward(network.state_dict(), settings, image)
        outputs = network(image)
    assert len(expected) == (3 if deep else 1)
    torch.testing.assert_close(outputs if deep else [outputs], expected)
