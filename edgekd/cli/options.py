"""Flags that several verbs share, parsers of their values, and a help page in sections."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekd.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

SECTION = "_edgekd_section"


class SectionedCommand(click.Command):
    """A command whose help lists its options under the headings that `section` gave them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            # Arguments stand in the usage line and are explained in the text.
            if record is not None and not isinstance(parameter, click.Argument):
                sections.setdefault(getattr(parameter, SECTION, "Other"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def section(heading: str, *options: Callable[[F], F]) -> Callable[[F], F]:
    """Applies click options so that they stand in the order given and under `heading`."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
            parameter = function.__click_params__[-1]  # type: ignore[attr-defined]  # where click collects them
            setattr(parameter, SECTION, heading)
        return function

    return decorate


def workers_option(function: F) -> F:
    """`--workers`."""
    return click.option(
        "--workers",
        default="auto",
        show_default=True,
        metavar="N|auto|ray://HOST:PORT",
        help="Who scores students in a search; it changes no result.",
    )(function)


def own_code(function: F) -> F:
    """Adds `--arch`, as `archs`, to a verb that takes finished bundles."""
    return click.option("--arch", "archs", multiple=True, metavar="MODULE:FACTORY",
                        help="Your own code that a bundle of weights is built with; it runs only when named. Repeat.")(
        function
    )  # fmt: skip


def on_boards() -> tuple[Callable[[F], F], ...]:
    """Flags that say how a board measures."""
    return (
        click.option("--lock-clocks", is_flag=True, help="Fix the board's clocks while measuring, and restore them."),
        click.option(
            "--device-python", metavar="PATH", help="The board's Python that has the runtime; default python3."
        ),
    )


def running(default_out: str | None) -> tuple[Callable[[F], F], ...]:
    """Flags of the verbs that run a graph."""
    return (
        click.option(
            "-o",
            "--out",
            type=click.Path(path_type=Path),
            default=None if default_out is None else Path(default_out),
            show_default=default_out or "the recipe's folder",
            help="Folder of results.",
        ),
        click.option("--dry-run", is_flag=True, help="Print what would run and why, write resolved.yaml, stop."),
        click.option("--rebuild", multiple=True, metavar="NODE", help="Run this node again; `all`: every one. Repeat."),
        click.option(
            "--device",
            "devices",
            multiple=True,
            metavar="auto|cpu|cuda|ssh://...",
            help="auto, cpu or cuda: where to train. ssh://USER@HOST[:PORT]: where to measure. Repeat for both.",
        ),
        *on_boards(),
        click.option("--cpu-threads", type=click.IntRange(1), help="CPU threads of training; default: all cores."),
        workers_option,
    )


def shared(function: F) -> F:
    """`--store`, `--format`, `-v`, `-q`."""
    return section(
        "Running",
        click.option(
            "--store",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path(".edgekd"),
            show_default=True,
            help="Folder of reusable results.",
        ),
        click.option(
            "--format",
            "output_format",
            type=click.Choice(["text", "table", "json"]),
            default="text",
            help="Of output and progress; text and table are the same.",
        ),
        click.option("-v", "--verbose", is_flag=True, help="Say more; show the traceback of an error."),
        click.option("-q", "--quiet", is_flag=True, help="Only the result, warnings and errors."),
    )(function)


def verbosity_of(verbose: bool, quiet: bool) -> int:
    """-1, 0 or 1 for a reporter.

    Raises:
        UserError: Both at once.
    """
    if verbose and quiet:
        raise UserError("-v and -q contradict each other.", hint="give one of them")
    return int(verbose) - int(quiet)


_SHAPE = re.compile(r"^(?:(?P<name>[\w.]+):)?(?P<sizes>\d+(?:x\d+){2,3})$")


def parse_input_shape(text: str) -> tuple[int, int, int]:
    """(C, H, W) from `3x224x224`, `1x3x224x224` or `images:1x3x224x224`.

    Raises:
        UserError: Another form, or a batch other than 1.
    """
    found = _SHAPE.match(text.lower())
    sizes = [int(size) for size in found["sizes"].split("x")] if found else []
    if len(sizes) == 4 and sizes[0] == 1:
        sizes = sizes[1:]
    if len(sizes) != 3 or min(sizes) < 1:
        raise UserError(f"--input-shape {text!r}: expected CxHxW or images:1xCxHxW.", hint="--input-shape 3x224x224")
    return sizes[0], sizes[1], sizes[2]


def parse_numbers(text: str, flag: str) -> tuple[float, ...]:
    """Comma-separated numbers.

    Raises:
        UserError: Not numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"{flag} {text!r}: expected numbers separated by commas.", hint=f"{flag} 0.485,0.456,0.406"
        ) from None


def parse_counts(text: str, flag: str) -> tuple[int, ...]:
    """Comma-separated whole numbers from 1.

    Raises:
        UserError: Anything else, a fraction for example.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{flag} {text!r}: expected whole numbers from 1, separated by commas.", hint=f"{flag} 1,2")
    return tuple(int(part) for part in parts)


def parse_names(text: str, flag: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Comma-separated names out of `known`; `none` or an empty text gives none.

    Raises:
        UserError: An unknown name.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip() and part.strip() != "none")
    for name in names:
        if name not in known:
            raise UserError(f"{flag}: unknown name {name!r}.", hint=f"known: {', '.join(known)}, or none")
    return names


def parse_assignments(pairs: tuple[str, ...], flag: str) -> dict[str, Any]:
    """`("depth=56", "classes=10")` as a mapping; values are read as YAML.

    Raises:
        UserError: A pair without `=`, or a value that is not YAML.
    """
    import yaml

    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise UserError(f"{flag} {pair!r}: expected KEY=VALUE.", hint=f"{flag} depth=56")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError as err:
            raise UserError(f"{flag} {pair!r}: the value is not valid YAML.") from err
    return values


def names_for(paths: tuple[Path, ...]) -> list[tuple[str, Path]]:
    """A short, distinct, node-safe name for each path: its last parts, as many as it takes to tell them apart."""
    names: list[tuple[str, Path]] = []
    for path in paths:
        parts = [part for part in path.resolve().parts if part not in ("/", "bundle")]
        depth = 1
        while (name := _safe("-".join(parts[-depth:]))) in dict(names) and depth < len(parts):
            depth += 1
        names.append((name if name not in dict(names) else f"{name}-{len(names) + 1}", path))
    return names


def _safe(text: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[-60:] or "model"
