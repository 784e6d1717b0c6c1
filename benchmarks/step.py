"""One training step: supervised, the three passes written naively, and ours. ``python -m benchmarks.step [--json]``.

``ratio_to_supervised`` is our step over the supervised one (2.33 is the arithmetic floor of three passes at equal
precision); ``ratio_preset`` that of the preset ``medcontext``, which has the masked pass alone (floor 1);
``ratio_naive`` the naive step over the supervised one; ``overhead`` the share of our step that is not spent
in the network's own passes (losses, masking, moving average); ``memory`` and ``memory_naive`` are the peak beyond
weights and optimiser, as ratios to the supervised step's. Naive means: both student graphs alive at once, the loss on
one-hot targets (MONAI's), the moving average one parameter at a time. On a CPU memory is the growth of the process,
which is coarse.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import grown_by, machine, peak_gib, seconds_of
from medcontext.losses.dice_ce import over_heads
from medcontext.method.masking import volume_size
from medcontext.method.objective import MedContext
from medcontext.method.presets import MethodConfig
from medcontext.networks.registry import NETWORKS, build_network, network_spec

SMALL_PATCH = (64, 64, 64)
THREE_PASSES = MethodConfig(ratio=0.3, clean_weight=1.0, consistency_weight=1.0)
VARIANTS: dict[str, MethodConfig | str] = {
    "supervised": "supervised",
    "naive": THREE_PASSES,
    "ours": THREE_PASSES,
    "preset": "medcontext",
}
"""What is timed, and its method."""
Action = Callable[[], object]


def prepare(name: str, scale: str, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Network, image and label of the published Synapse setting, or of a small one with 14 classes."""
    spec = network_spec(name)
    if scale == "published":
        known = spec.published["synapse"]
        patch, settings, channels, classes = known.patch, known.settings, known.channels, known.classes
    else:
        patch, channels, classes = SMALL_PATCH, 1, 14
        settings = spec.settings(patch, (1.0, 1.0, 1.0), "small")
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, *patch, generator=generator)
    label = torch.randint(0, classes, (1, *patch), generator=generator)
    network = build_network(name, channels, classes, patch, settings, seed=0)
    return network.to(device), image.to(device), label.to(device)


def step_of(variant: str, network: nn.Module, image: Tensor, label: Tensor, bf16: bool) -> Action:
    """A whole step, the optimiser's included."""
    method = MedContext(network, VARIANTS[variant], total_steps=1000)
    optimizer = torch.optim.AdamW(method.student.parameters(), fused=True)
    naive_loss = _naive(method)

    def step() -> None:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
            if variant == "naive":
                total = naive_loss(image, label)
            else:
                method(image, label, backward=torch.Tensor.backward)
        if variant == "naive":
            torch.autograd.backward(total)
        optimizer.step()
        optimizer.zero_grad()
        _slow_average(method) if variant == "naive" else method.after_step()

    return step


def _naive(method: MedContext) -> Callable[[Tensor, Tensor], Tensor]:
    from monai.losses.dice import DiceCELoss

    supervised = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        value: Tensor = supervised(logits.float(), target[:, None])
        return value

    def forward(image: Tensor, label: Tensor) -> Tensor:
        assert method.teacher is not None
        target = method.teacher(image)
        target = target if isinstance(target, Tensor) else target[0]
        clean, masked = method.student(image), method.student(image, method.draw_mask(image))
        finest = masked if isinstance(masked, Tensor) else masked[0]
        difference = nn.functional.kl_div(
            finest.float().log_softmax(1), target.float().softmax(1), reduction="none"
        ).sum(1)
        return over_heads(loss, clean, label) + over_heads(loss, masked, label) + difference.mean()

    return forward


@torch.no_grad()
def _slow_average(method: MedContext) -> None:
    assert method.teacher is not None
    for mine, theirs in zip(method.teacher.network.parameters(), method.network.parameters(), strict=True):
        mine.mul_(0.99).add_(theirs * 0.01)


def passes_of(network: nn.Module, image: Tensor, bf16: bool) -> Action:
    """What our step costs the network itself: two passes forth and back and one forth, with the cheapest of losses."""
    teacher = copy.deepcopy(network).eval()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                teacher(image)
            for _ in range(2):
                outputs = network(image)
                heads = [outputs] if isinstance(outputs, Tensor) else outputs
                torch.autograd.backward(torch.stack([head.float().mean() for head in heads]).sum())
        optimizer.step()
        optimizer.zero_grad()

    return step


def memory(name: str, scale: str, device: str, bf16: bool, variant: str) -> float:
    """GiB at the peak of two steps beyond weights and data."""
    network, image, label = prepare(name, scale, device)
    step = step_of(variant, network, image, label, bf16)
    return grown_by(lambda: (step(), step()), device)


def measure(name: str, scale: str, device: str, bf16: bool, repeats: int) -> dict[str, Any]:
    """One network's row."""
    network, image, label = prepare(name, scale, device)
    actions: dict[str, Action] = {
        variant: step_of(variant, copy.deepcopy(network), image, label, bf16) for variant in VARIANTS
    }
    actions["passes"] = passes_of(copy.deepcopy(network), image, bf16)
    taken = seconds_of(actions, repeats, device)
    peak = {variant: peak_gib(memory, name, scale, device, bf16, variant) for variant in VARIANTS}
    return {
        "network": name,
        "scale": scale,
        "patch": list(volume_size(image)),
        "precision": "bf16" if bf16 else "fp32",
        "seconds": {variant: round(taken[variant], 4) for variant in VARIANTS},
        "ratio_to_supervised": round(taken["ours"] / taken["supervised"], 3),
        "ratio_preset": round(taken["preset"] / taken["supervised"], 3),
        "ratio_naive": round(taken["naive"] / taken["supervised"], 3),
        "overhead": round(1 - taken["passes"] / taken["ours"], 3),
        "peak_gib": {variant: round(peak[variant], 3) for variant in VARIANTS},
        "memory": round(peak["ours"] / peak["supervised"], 3),
        "memory_naive": round(peak["naive"] / peak["supervised"], 3),
        **machine(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--scales", nargs="*", default=["small", "published"], choices=["small", "published"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for scale, name in itertools.product(options.scales, options.networks):
        row = measure(name, scale, options.device, options.precision == "bf16", options.repeats)
        if options.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{name:12} {scale:9} ours {row['ratio_to_supervised']:.2f} x supervised, "
                f"naive {row['ratio_naive']:.2f} x, preset {row['ratio_preset']:.2f} x, "
                f"overhead {row['overhead']:.1%}, memory {row['memory']:.2f} x "
                f"(naive {row['memory_naive']:.2f} x)",
                flush=True,
            )


if __name__ == "__main__":
    main()
