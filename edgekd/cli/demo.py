"""`edgekd demo`: the main job on an embedded default, for a first look."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.options import SectionedCommand, running, section, shared
from edgekd.errors import UserError


@click.command(cls=SectionedCommand, short_help="The main job on handwritten digits.")
@section("Main", *running("out/demo"))
@shared
def demo(**flags: Any) -> int:
    """Train a teacher on scikit-learn's handwritten digits (once), then compress it for this machine.

    It ends with what each model buys, the report's path and the verdict. Nothing is downloaded.
    """
    from edgekd.cli.console import reporter_for
    from edgekd.cli.work import Job, live, start
    from edgekd.core.stage import Execution
    from edgekd.core.store import LocalStore
    from edgekd.pipeline.digits import OPTIONS, digits_npz, digits_request, trained_teacher

    job = Job.from_flags(flags)
    if job.board is not None:
        raise UserError("The demo compresses for this machine.", hint="edgekd compress ... --device ssh://user@host")
    with live(reporter_for(job.output_format, job.verbosity)) as reporter:
        reporter.message("Handwritten digits of scikit-learn, upscaled to 1x32x32.")
        data = digits_npz(job.out / "digits.npz")
        model = trained_teacher(
            data,
            job.out / "teacher.pt",
            LocalStore(job.store),
            reporter,
            Execution(device=job.device, threads=job.cpu_threads),
        )
    return start(job, request=digits_request(model, data), options=OPTIONS)
