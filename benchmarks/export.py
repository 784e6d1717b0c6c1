"""Every network in every format of a file. ``python -m benchmarks.export [--json] [--networks NAME ...]``.

One JSON object per line with ``network``, ``format``, ``batch`` (null: any), ``seconds`` (writing, reading back and
comparing), ``megabytes`` (of the network's file) and the ``difference`` of logits, as a share of the largest one; or
``error``. The settings are those published for Synapse CT, weights are random.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from medcontext.data.labels import Labels
from medcontext.data.plan import Normalisation, Plan
from medcontext.errors import MedContextError
from medcontext.inference.export.exporter import export_model
from medcontext.inference.export.formats import FormatName
from medcontext.inference.model import save_model
from medcontext.networks.registry import NETWORKS, build_network

FORMS: tuple[FormatName, ...] = ("onnx", "torch-export", "torchscript")
"""A MONAI bundle holds the same TorchScript."""


def write_model(path: Path, name: str) -> None:
    """A model file of an untrained network."""
    published = NETWORKS[name].published["synapse"]
    plan = Plan(
        dataset="Synapse",
        channels=published.channels,
        labels=Labels({number: f"organ {number}" for number in range(1, published.classes)}),
        orientation="SAR",
        spacing=(2.0, 1.5, 1.5),
        normalisation=Normalisation("ct", -160.0, 240.0, 70.0, 60.0),
        patch=published.patch,
        batch_size=1,
        steps=1,
        scale="full",
    )
    network = build_network(name, plan.channels, plan.labels.outputs, plan.patch, published.settings, seed=0)
    save_model(path, network.state_dict(), plan, {"network": name, "settings": published.settings})


def row_of(model: Path, form: FormatName, out: Path) -> dict[str, Any]:
    """What came of one export."""
    began = time.perf_counter()
    try:
        about = export_model(model, out, form)
    except MedContextError as error:
        return {"error": f"{error.problem} {error.found}"}
    parity = about["parity"]
    return {
        "batch": about["network"]["batch"],
        "seconds": round(time.perf_counter() - began, 1),
        "megabytes": round((out / about["network"]["file"]).stat().st_size / 1e6, 1),
        "difference": float(f"{parity['largest_difference'] / parity['largest_logit']:.1e}"),
        "label_agreement": parity["label_agreement"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model.pt"
            write_model(model, name)
            for form in FORMS:
                row = {"network": name, "format": form, **row_of(model, form, Path(folder) / form)}
                print(json.dumps(row) if options.json else "  ".join(map(str, row.values())), flush=True)


if __name__ == "__main__":
    main()
