"""The entry point ``medcontext``."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from medcontext.cli import (
    commands,
    data_commands,
    evaluate_command,
    export_command,
    predict_commands,
    study_command,
    view_command,
)
from medcontext.cli.parser import Parser
from medcontext.errors import MedContextError
from medcontext.method.presets import PRESETS, MethodConfig
from medcontext.training.config import TrainConfig
from medcontext.version import __version__

COMMANDS: dict[str, Callable[..., int]] = {
    command.__name__: command
    for command in (
        commands.phantom,
        commands.check,
        commands.plan,
        commands.split,
        predict_commands.predict,
        predict_commands.tune,
        export_command.export,
        evaluate_command.evaluate,
        commands.report,
        commands.compare,
        view_command.view,
        study_command.study,
        commands.demo,
        commands.networks,
    )
}

DESCRIPTION = "Train 3D segmentation networks that learn context (MedContext), from a folder of labelled scans."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0 well, 1 something is wrong, 2 called wrongly, 130 stopped."""
    # Threads that wait for each other by spinning make a step ten times slower as soon as another program wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files need not be text; that they can't be shown as they are must not end a command.
            stream.reconfigure(errors="backslashreplace")
    given = [_with_underscores(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    given = _files_first(given)
    parser = _parser(given)
    settings = parser.parse_args(given)
    if settings.subcommand is None:
        parser.print_help()
        sys.exit(2)
    try:
        sys.exit(_run(settings.subcommand, parser.instantiate(settings)[settings.subcommand]))
    except MedContextError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # Who read the output (head, less) has gone; there is no one left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _run(name: str, settings: Namespace) -> int:
    if name == "train":
        return _train(settings)
    if name == "data":
        return data_commands.COMMANDS[settings.subcommand](**vars(settings[settings.subcommand]))
    return COMMANDS[name](**vars(settings))


def _train(settings: Namespace) -> int:
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from medcontext.progress import Progress
    from medcontext.training.train import train

    config = TrainConfig(**{field.name: settings[field.name] for field in dataclasses.fields(TrainConfig)})
    how = {"resume": settings.resume, "replace": settings.replace, "progress": Progress()}
    if settings.folds is None:
        run = train(settings.data, settings.out, config, **how)
        rank_zero_only(print)(f"trained: {run}. Next: medcontext report {run}")
        return 0

    from medcontext.cli.tables import print_table
    from medcontext.studies.cross_validation import cross_validate
    from medcontext.studies.fold_summary import folds_table

    summary = cross_validate(settings.data, settings.out, config, folds=settings.folds, **how)
    rank_zero_only(print_table)(folds_table(summary))
    rank_zero_only(print)(f"cross-validated: {settings.out / 'summary.json'}; a run folder for each fold beside it")
    return 0


def _parser(given: Sequence[str]) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # An abbreviated option would be taken, and not seen by what looks for it here.
    parser = Parser(prog="medcontext", description=DESCRIPTION, version=__version__, allow_abbrev=False)
    subcommands = parser.add_subcommands(required=False)
    _add_commands(subcommands, COMMANDS)
    data = Parser(description="Data sets by name: Synapse, ACDC, BraTS, the Medical Segmentation Decathlon.")
    subcommands.add_subcommand("data", data, help="Data sets by name: list, import and fetch them.")
    _add_commands(data.add_subcommands(), data_commands.COMMANDS)
    summary = "Train a network on a folder of labelled scans; what can be set is listed by 'medcontext train --help'."
    subcommands.add_subcommand("train", _train_parser(given), help=summary)
    return parser


def _add_commands(subcommands: Any, commands: Mapping[str, Callable[..., int]]) -> None:
    for name, command in commands.items():
        summary = (command.__doc__ or "").splitlines()[0]
        inner = Parser(description=summary)
        flags = [flag for flag, each in signature(command).parameters.items() if each.default is False]
        several = [name for name, each in signature(command).parameters.items() if each.default == ()]
        inner.add_function_arguments(command, as_positional=True, skip={*flags, *several})
        for paths in several:
            inner.add_argument(paths, type=Path, nargs="*", default=[], help=_described(command, paths))
        for flag in flags:
            inner.add_argument(f"--{flag}", action="store_true", help=_described(command, flag))
        subcommands.add_subcommand(name, inner, help=summary)


def _described(command: Callable[..., int], parameter: str) -> str:
    """What a command's docstring says of a parameter."""
    lines = (command.__doc__ or "").splitlines()
    return next(text for name, _, text in (line.strip().partition(": ") for line in lines) if name == parameter)


def _train_parser(given: Sequence[str]) -> ArgumentParser:
    parser = Parser(description="Train a network on a folder of labelled scans.")
    parser.add_argument("data", type=Path, help="data folder: imagesTr and labelsTr, or images and labels")
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument("--resume", action="store_true", help="go on with the run where it stopped, if it is there")
    parser.add_argument("--replace", action="store_true", help="remove the run that is there first")
    parser.add_argument(
        "--folds", type=int | None, help="train so many folds, one after the other, each in a folder of its own in OUT"
    )
    parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_class_arguments(TrainConfig, as_group=False, skip={"method"})
    stored = _stored_settings(given) if "--resume" in given else {}
    preset = _preset_asked(parser, given) or stored.get("preset")
    parser.add_class_arguments(MethodConfig, "method", default=PRESETS[preset if preset in PRESETS else "medcontext"])
    parser.set_defaults(stored)
    return parser


def _files_first(given: list[str]) -> list[str]:
    """A training's files of settings before everything else, since for jsonargparse what comes later counts: so what is
    said on the command line counts, wherever it stands."""
    if given[:1] != ["train"]:
        return given
    files, others, place = list[str](), list[str](), 1
    while place < len(given):
        taken = 2 if given[place] == "--config" else 1
        (files if given[place].partition("=")[0] == "--config" else others).extend(given[place : place + taken])
        place += taken
    return ["train", *files, *others]


def _values_of(option: str, given: Sequence[str]) -> list[str]:
    """What every such option is followed by."""
    values = []
    for place, argument in enumerate(given):
        name, equals, same = argument.partition("=")
        if name == option:
            values.append(same if equals else "".join(given[place + 1 : place + 2]))
    return values


def _read_yaml(given: str) -> dict[str, Any]:
    """Settings in a YAML file, or as such text itself; what is neither is left for the parser to refuse."""
    import yaml

    try:
        content = yaml.safe_load(Path(given).read_text(encoding="utf-8") if Path(given).is_file() else given)
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return {}
    return content if isinstance(content, dict) else {}


def _stored_settings(given: Sequence[str]) -> dict[str, Any]:
    """The settings of the run that is resumed, so that what is not said anew stays as it was.

    Your own network has to be named again: no file may choose code to run.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    stored = _read_yaml(str(Path(*_values_of("--out", given)[-1:]) / "config.yaml"))
    return {key: value for key, value in stored.items() if key in known and ":" not in str(key == "network" and value)}


def _preset_asked(parser: Parser, given: Sequence[str]) -> Any:
    """The preset that the details of the method start from, if one is asked for; anything odd is left for the parser to
    refuse, but for files with details that belong to another preset: it would be trained under this one's name."""
    files = {file: _read_yaml(file) for file in _values_of("--config", given)}
    said = [*(content["preset"] for content in files.values() if "preset" in content), *_values_of("--preset", given)]
    asked = said[-1] if said else None
    for file, content in files.items():
        if content.get("method") and content.get("preset", asked) != asked:
            parser.error(
                f"{file} has the method of preset {content['preset']}, and {asked} is asked for; leave that out, or "
                "take 'method' out of the file"
            )
    return asked


def _with_underscores(argument: str) -> str:
    """``--max-steps`` and ``--max_steps`` are the same option."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
