"""The method in a plain PyTorch loop, from data to a resumed training: ``python examples/plain_loop.py``.

The network is MONAI's; any other that maps (B, C, D, H, W) to logits would do. The scans are made up: in each, a bright
box lies above a dim one, so that who sees one knows where the other must be.
"""

from __future__ import annotations

import argparse

import torch
from monai.networks.nets.segresnet import SegResNet
from torch import Tensor, nn

from medcontext import MedContext

CLASSES = 3


def make_batch(step: int, size: int = 32, samples: int = 2) -> tuple[Tensor, Tensor]:
    """Images (B, 1, D, H, W) and class indices (B, D, H, W), drawn from the step alone."""
    generator = torch.Generator().manual_seed(step)
    label = torch.zeros(samples, size, size, size, dtype=torch.int64)
    for sample in label:
        d, h, w = torch.randint(4, size - 20, (3,), generator=generator).tolist()
        sample[d : d + 8, h : h + 12, w : w + 12] = 1
        sample[d + 8 : d + 16, h : h + 12, w : w + 12] = 2
    noise = torch.randn(samples, 1, size, size, size, generator=generator)
    return label[:, None].float() + 0.8 * noise, label


def build(steps: int, preset: str) -> tuple[nn.Module, MedContext, torch.optim.Optimizer]:
    """Network, method and optimiser; the optimiser gets what the method learns beside the network's weights, too."""
    torch.manual_seed(0)
    network = SegResNet(spatial_dims=3, init_filters=8, in_channels=1, out_channels=CLASSES)
    method = MedContext(network, preset, total_steps=steps, generator=torch.Generator().manual_seed(0))
    return network, method, torch.optim.AdamW(method.student.parameters(), lr=5e-3)


def train(method: MedContext, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """The loop. Given ``backward``, the method frees a clean pass, if any, before the masked one: less memory."""
    method.student.train()
    for step in steps:
        image, label = make_batch(step)
        losses = method(image, label, backward=torch.Tensor.backward, diagnose=step % 10 == 9)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
        if step % 10 == 9:
            print(f"step {step + 1}: " + ", ".join(f"{name} {float(value):.3f}" for name, value in losses.items()))


@torch.no_grad()
def dice(network: nn.Module) -> float:
    """Mean foreground Dice on scans that were not trained on."""
    network.eval()
    image, label = make_batch(10_000, samples=4)
    chosen = network(image).argmax(1)
    scores = [
        2 * ((chosen == k) & (label == k)).sum() / ((chosen == k).sum() + (label == k).sum()) for k in range(1, CLASSES)
    ]
    return float(torch.stack(scores).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--preset", default="medcontext")
    options = parser.parse_args()

    network, method, optimizer = build(options.steps, options.preset)
    train(method, optimizer, range(options.steps // 2))
    saved = {"method": method.state_dict(), "optimizer": optimizer.state_dict()}

    # As if in another process: the method's state holds the network, the teacher, the step and the masks' generator.
    network, method, optimizer = build(options.steps, options.preset)
    method.load_state_dict(saved["method"])
    optimizer.load_state_dict(saved["optimizer"])
    train(method, optimizer, range(method.step, options.steps))

    print(f"Dice of the student {dice(network):.3f}", end="")
    print("" if method.teacher is None else f", of the teacher {dice(method.teacher.network):.3f}")


if __name__ == "__main__":
    main()
