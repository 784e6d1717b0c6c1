"""What a run folder says of its run, in words: for tables that people read."""

from __future__ import annotations

from medcontext.files import read_json
from medcontext.inference.model import load_model
from medcontext.method.presets import MethodConfig
from medcontext.progress import clock
from medcontext.training.run import RunFolder


def facts(run: RunFolder) -> dict[str, str]:
    """What was trained on what."""
    settings, split, about = run.read_config(), run.read_split(), load_model(run.best).about
    unlabelled, pretrained = len(read_json(run.about).get("unlabelled", ())), settings.get("pretrain_steps", 0)
    history = run.history()
    seconds = next((row["seconds"] for row in reversed(history) if "seconds" in row), 0.0)
    steps, planned = max((row["step"] for row in history), default=0), settings["max_steps"]
    method = run.read_settings().method_config()
    chosen = about["validation_dice"] is not None and settings.get("keep", "best") == "best"
    return {
        "Data": str(run.data),
        "Preset": settings["preset"],
        "Masking": _masking(method) if method.masks else "none",
        "Network": f"{settings['network']}, {about['parameters']:,} parameters",
        "Patch": f"{' x '.join(map(str, settings['patch']))} voxels, {settings['batch_size']} per step",
        "Steps": (f"{steps:,}" if steps == planned else f"{steps:,} of {planned:,}")
        + f" in {clock(seconds)}"
        + ("" if run.finished else ", not finished")
        + (f", after {pretrained:,} of pre-training" if pretrained else ""),
        "Cases": f"{len(split.train)} training, {len(split.validation)} validation, {len(split.test)} held out"
        + (f"; {unlabelled} without their label" if unlabelled else ""),
        "Seed": f"{settings['seed']} (split {settings['split_seed']})",
        "Model": f"{about['which']} at "
        + (f"step {about['step']:,}, chosen by validation" if chosen else "the last step"),
    }


def _masking(method: MethodConfig) -> str:
    share = " to ".join(f"{100 * end:g}" for end in dict.fromkeys(method.ratio_range))
    samples = f" of {100 * method.mask_probability:g} % of the samples" if method.mask_probability < 1 else ""
    samples += f" in the first {100 * method.mask_until:g} % of the steps" if method.mask_until < 1 else ""
    return f"{method.mask}, {share} % hidden{samples}, {method.hide}, {method.fill} in their place"


def environment(run: RunFolder) -> dict[str, str]:
    """When, with what and on what it was trained."""
    about, settings = read_json(run.about), run.read_config()
    return {
        "Started": about["started"],
        "Command": about.get("command", "not recorded"),
        "Source": about.get("source") or "installed package",
        "Processor": f"{about['processor']}, {about['cores']} cores, {about['threads']} threads",
        "Device": f"{settings['device']} in {settings['precision']}",
        "Python": about["python"],
        **about["versions"],
    }
