"""What a gate hands to CI: the verdict, and what was measured to reach it."""

from __future__ import annotations

from edgekd.core.report import Check, Evaluation, Latency, LatencyReport, Verdict


class GateReport(Verdict):
    """A verdict with its evidence.

    Attributes:
        subject: What was judged, as it was named.
        content: Digest of the judged bundle; None for a finished run.
        device: Fingerprint of the device that the latency is of.
        latency: Of the judged engine, measured or predicted; None when there is none.
        accuracy: Of the judged engine, where it was evaluated.
        size_mib: Of its file; None for a finished run.
        baseline_latency: Of the baseline's engine, where it was measured in turns with it.
        seconds: Time of measuring.
        notes: Sentences on what may have disturbed the measurement, and on what was decided on the way.
    """

    subject: str
    content: str | None = None
    device: str
    latency: Latency | None = None
    accuracy: Evaluation | None = None
    size_mib: float | None = None
    baseline_latency: LatencyReport | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        verdict: Verdict,
        *,
        subject: str,
        device: str,
        latency: Latency | None = None,
        notes: tuple[str, ...] = (),
    ) -> GateReport:
        """The report of a verdict that was reached without measuring."""
        return cls(
            status=verdict.status,
            reason=verdict.reason,
            checks=verdict.checks,
            subject=subject,
            device=device,
            latency=latency,
            notes=notes,
        )

    def ratio(self) -> Check | None:
        """The check of the ratio to a baseline engine, if there is one."""
        return next((check for check in self.checks if check.unit == "x"), None)
