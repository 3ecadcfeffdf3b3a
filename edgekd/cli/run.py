"""`edgekd run`: a resolved recipe, again or elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli.options import SectionedCommand, running, section, shared


@click.command(cls=SectionedCommand, short_help="Run a resolved recipe again.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@section("Main", *running(None))
@shared
def run(**flags: object) -> int:
    """Run RECIPE (the resolved.yaml of an earlier run) and write the same results.

    KEY=VALUE reaches any field: request.budget.max_latency_ms=3 and options.epochs=5 compose the graph anew,
    graph.nodes.student-distill.config.epochs=5 changes one node. What an override does not touch is reused.
    """
    from edgekd.cli.work import Job, start
    from edgekd.pipeline.recipes import read_recipe

    overrides = flags["overrides"]
    texts = [str(item) for item in overrides] if isinstance(overrides, tuple) else []
    recipe, composes = read_recipe(Path(str(flags["recipe"])), texts)
    flags["out"] = flags["out"] or Path(str(flags["recipe"])).parent
    if composes:
        return start(Job.from_flags(flags), request=recipe.request, options=recipe.options)
    return start(Job.from_flags(flags), recipe=recipe)
