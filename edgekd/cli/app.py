"""The `edgekd` command: verbs loaded when they are called, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from types import FrameType

import click

import edgekd
from edgekd.core.schema import suggest
from edgekd.errors import INTERNAL_EXIT_CODE, INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE, EdgekdError

VERBS: dict[str, tuple[str, str]] = {
    "compress": ("edgekd.cli.compress:compress", "Compress a model for a device within a latency budget."),
    "run": ("edgekd.cli.run:run", "Run a resolved recipe (resolved.yaml) again."),
    "search": ("edgekd.cli.search:search", "Find students within a latency budget; train nothing."),
    "distill": ("edgekd.cli.distill:distill", "Train a student, taught by a larger network."),
    "prune": ("edgekd.cli.prune:prune", "Cut channels out of a network."),
    "quantize": ("edgekd.cli.quantize:quantize", "Make the INT8 graph of a network."),
    "export": ("edgekd.cli.export:export", "Write a network as an ONNX graph."),
    "package": ("edgekd.cli.package:package", "Put a bundle into one file, or verify one."),
    "build": ("edgekd.cli.build:build", "Build the TensorRT engines of a bundle on its device."),
    "evaluate": ("edgekd.cli.evaluate:evaluate", "Measure the accuracy of a bundle or model on data."),
    "inspect": ("edgekd.cli.inspect:inspect_verb", "Say what a device makes of an ONNX graph; mend what is safe."),
    "profile": ("edgekd.cli.profile:profile", "Measure the latency of bundles, here or on boards."),
    "benchmark": ("edgekd.cli.benchmark:benchmark", "Compare runtimes and precisions of one model in one table."),
    "compare": ("edgekd.cli.compare:compare", "Say which of several bundles is faster, and how sure that is."),
    "gate": ("edgekd.cli.gate:gate", "Judge a run or a bundle against limits; the exit code is the verdict."),
    "baseline": ("edgekd.cli.baseline:baseline", "Accept a result, so that later ones are held to it."),
    "history": ("edgekd.cli.history:history", "Show the verdicts over time, as a table or a plot."),
    "targets": ("edgekd.cli.targets:targets", "List the devices, or explain one."),
    "teachers": ("edgekd.cli.teachers:teachers", "Find out which of several teachers suits a student."),
    "label": ("edgekd.cli.label:label", "Choose the images whose labels would teach most."),
    "objectives": ("edgekd.cli.objectives:objectives", "List the distillation objectives."),
    "doctor": ("edgekd.cli.doctor:doctor", "Say what this machine can do and what is missing."),
    "demo": ("edgekd.cli.demo:demo", "The main job on handwritten digits, from training to verdict."),
}


class _Verbs(click.Group):
    """Imports a verb's module only when the verb is called, so that --help stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, attribute = VERBS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}.{suggest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@click.command(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 ok, 1 over budget, 2 usage, 3 device unavailable, 4 build failed, 5 inconclusive, 70 a bug.",
)
@click.version_option(edgekd.__version__, prog_name="edgekd")
def app() -> None:
    """Compress a trained vision model for an edge device, within a latency budget, with evidence.

    \b
    edgekd compress model.pt --arch timm:resnet18 --target host --data photos/ --max-latency-ms 5 --max-drop 0.01
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, as CI and containers end a job: scratch folders and workers go as after Ctrl-C."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line and exits with the documented code."""
    signal.signal(signal.SIGTERM, _terminate)
    # NNCF compiles an extension at first use and gives up after a minute by default; zero waits for it.
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")
    sys.exit(exit_code_of(argv if argv is not None else sys.argv[1:]))


def exit_code_of(argv: list[str]) -> int:
    """Runs the command line in this process; prints what went wrong to standard error."""
    try:
        code = app.main(args=argv, prog_name="edgekd", standalone_mode=False)
    except EdgekdError as err:
        _complain(err.message, err.hint)
        _trace_if_verbose(argv, err)
        return err.exit_code
    except click.exceptions.Exit as err:
        return err.exit_code
    except click.ClickException as err:
        err.show()
        return err.exit_code
    except (KeyboardInterrupt, click.Abort) as err:
        terminated = Terminated in (type(err), type(err.__cause__))
        _complain(f"{'Terminated' if terminated else 'Interrupted'}.{_what_is_kept(argv)}", None)
        return TERMINATED_EXIT_CODE if terminated else INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        # The reader of our output went away (`edgekd ... | head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as err:  # noqa: BLE001 - the last net: a bug of ours, said so, with its own exit code
        _complain(f"This is a bug in edgekd {edgekd.__version__}: {type(err).__name__}: {err}", "run again with -v")
        _trace_if_verbose(argv, err)
        return INTERNAL_EXIT_CODE
    return code if isinstance(code, int) else 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _what_is_kept(argv: list[str]) -> str:
    """A verb with a store goes on from it; the others write their result at the end, or nothing."""
    verb = next((word for word in argv if word in VERBS), "")
    command = app.get_command(click.Context(app), verb)
    if command is None or not any(parameter.name == "store" for parameter in command.params):
        return ""
    return " What was finished is kept: the same command continues from there."


def _complain(message: str, hint: str | None) -> None:
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(message, err=True)
    if hint:
        click.secho("hint:  ", fg="cyan", bold=True, nl=False, err=True)
        click.echo(hint, err=True)


def _trace_if_verbose(argv: list[str], err: BaseException) -> None:
    if any(flag in argv for flag in ("-v", "--verbose")):
        click.echo("".join(traceback.format_exception(err)), err=True)
