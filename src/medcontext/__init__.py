"""MedContext: train any 3D medical segmentation network better from the same scans, by learning context.

The names below are the public interface. They are loaded when first used, so that importing the package is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medcontext.version import __version__

if TYPE_CHECKING:
    from medcontext.errors import MedContextError as MedContextError
    from medcontext.evaluation.evaluate import evaluate as evaluate
    from medcontext.inference.predictor import Predictor as Predictor
    from medcontext.method.objective import MedContext as MedContext
    from medcontext.method.presets import PRESETS as PRESETS
    from medcontext.method.presets import MethodConfig as MethodConfig
    from medcontext.training.config import TrainConfig as TrainConfig
    from medcontext.training.train import train as train

_HOMES = {
    "MedContext": "medcontext.method.objective",
    "MedContextError": "medcontext.errors",
    "MethodConfig": "medcontext.method.presets",
    "PRESETS": "medcontext.method.presets",
    "Predictor": "medcontext.inference.predictor",
    "TrainConfig": "medcontext.training.config",
    "evaluate": "medcontext.evaluation.evaluate",
    "train": "medcontext.training.train",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
