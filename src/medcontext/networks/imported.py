"""Anybody's own network, by the name ``package.module:factory``."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from medcontext.errors import MedContextError
from medcontext.networks.spec import NetworkSpec, Scale, Settings, Size, Spacing

LEARNING_RATE = 1e-3
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def import_network(name: str) -> NetworkSpec:
    """Import a module, which runs its code, and describe the network that it makes.

    Args:
        name: ``package.module:attribute``. The attribute is called as ``factory(channels, classes, patch, **settings)``
            and gives a module from ``(B, C, D, H, W)`` to logits; or it is a :class:`NetworkSpec`, for all that is to
            be said of a network.

    Raises:
        MedContextError: There is no such module or attribute, or it can't be called.
    """
    if not NAME.fullmatch(name):
        raise MedContextError("This does not name a network.", found=name, expected="package.module:factory")
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise MedContextError(
            "The module of this network can't be imported.",
            found=f"{name}: {error}",
            remedy="install its package in this environment, or put its folder on PYTHONPATH",
        ) from error
    try:
        factory = attrgetter(attribute)(module)
    except AttributeError:
        raise MedContextError(
            "The module of this network does not have it.",
            file=getattr(module, "__file__", None),
            found=", ".join(key for key in vars(module) if not key.startswith("_"))[:200] or "nothing",
            expected=attribute,
        ) from None
    if isinstance(factory, NetworkSpec):
        return factory
    if not callable(factory):
        raise MedContextError(
            "This network can't be made.",
            found=f"{name} is a {type(factory).__name__}",
            expected="a function, a class, or a NetworkSpec",
        )

    def build(channels: int, classes: int, patch: Size, settings: Settings) -> nn.Module:
        return _build(name, factory, channels, classes, patch, settings)

    return NetworkSpec(settings=_no_settings, build=build, learning_rate=LEARNING_RATE)


def _no_settings(patch: Size, spacing: Spacing, scale: Scale) -> Settings:
    """A factory's own defaults."""
    return {}


def _build(
    name: str, factory: Callable[..., Any], channels: int, classes: int, patch: Size, settings: Settings
) -> nn.Module:
    """Call the factory and check what it made."""
    if isinstance(factory, nn.Module):
        raise MedContextError(
            "This is a network, not what makes one.",
            found=f"{name} is a {type(factory).__name__}",
            expected="a class or function that is called as factory(channels, classes, patch, **settings)",
            remedy="name that: every training and every fold begins with a network of its own",
        )
    try:
        inspect.signature(factory).bind(channels, classes, patch, **settings)
    except TypeError as error:
        raise MedContextError(
            "This factory of a network takes other arguments.",
            found=f"{name}{inspect.signature(factory)}: {error}",
            expected=f"a call as factory(channels, classes, patch, **settings) with the settings {settings}",
        ) from None
    network = factory(channels, classes, patch, **settings)
    if not isinstance(network, nn.Module):
        raise MedContextError(
            "This factory makes no network.", found=f"{name} gave a {type(network).__name__}", expected="an nn.Module"
        )
    _check_output(name, network, channels, classes, patch)
    return network


def _check_output(name: str, network: nn.Module, channels: int, classes: int, patch: Size) -> None:
    """Refuse a network whose output is not logits of its input's size, by a pass that computes shapes alone.

    A network that can't be run so (its own GPU code, values looked at on the way) is left to its first step.

    Raises:
        MedContextError: It is one.
    """
    tensors = list(chain(network.named_parameters(), network.named_buffers()))
    lazy = [key for key, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise MedContextError(
            "This network has layers that don't know their size yet.",
            found=f"{name}: {lazy[0]} and {len(lazy) - 1} more",
            expected="layers of given sizes, whose weights there can be a copy and an average of",
            remedy="let the factory give the sizes, or run the network once on zeros before it returns it",
        )
    shapes = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors}
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            image = torch.empty(1, channels, *patch, device="meta")
            outputs = torch.func.functional_call(network.eval(), shapes, (image,))
    except Exception:  # whatever it is that does not work without numbers
        return
    finally:
        for module, mode in modes:
            module.training = mode
    heads = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    expected = (1, classes, *patch)
    found = [tuple(head.shape) if isinstance(head, Tensor) else type(head).__name__ for head in heads]
    if not found or found[0] != expected or any(len(shape) != 5 or shape[1] != classes for shape in found):
        raise MedContextError(
            "This network does not give logits of its input's size.",
            found=f"{name} gave {', '.join(map(str, found)) or 'nothing'} for an image {(1, channels, *patch)}",
            expected=f"{expected}, or a list of such logits, finest first",
        )
