"""Turns what a searcher was told into a report: scores and their certainty, the front, the picks and their reasons."""

from __future__ import annotations

from collections import Counter

import numpy as np

from edgekd.errors import UserError
from edgekd.search.certainty import Standing, standing
from edgekd.search.config import SearchConfig
from edgekd.search.front import front_places
from edgekd.search.proxy_names import proxy_from_name
from edgekd.search.reasons import Chance, Order
from edgekd.search.report import Candidate, Pick, SearchReport, Skipped
from edgekd.search.searcher import Outcome, Searcher
from edgekd.search.terms import Terms
from edgekd.search.words import words_of

WHY_SIZE = "Students within the limit are ranked by what was counted alone; --proxy combined also looks at their shape."
WHY_COMBINED = (
    "Students within the limit are ranked by capacity, less what their shape spoils: of the rankings here it orders "
    "published accuracies best (benchmarks/rank_correlation.py). Another one is a flag away: --proxy diswot+params."
)


def report_from_search(name: str, searcher: Searcher, terms: Terms) -> SearchReport:
    """What a finished search found.

    Args:
        name: Of the searcher.

    Raises:
        UserError: No student could be scored.
    """
    config, space, scored = terms.config, terms.space, searcher.scored
    if not scored:
        raise _nothing_scored(searcher, config)
    found = standing(terms.ranking, scored, seeds=terms.seeds)
    evaluated = [_candidate(outcome, place, found, terms) for place, outcome in enumerate(scored)]
    places = sorted(
        range(len(scored)), key=lambda place: (-evaluated[place].score, evaluated[place].macs_m, evaluated[place].arch)
    )
    order = Order(
        standing=found,
        places=places,
        texts=[candidate.text for candidate in evaluated],
        chance=_chance(terms),
        seeds=terms.seeds,
        kept=terms.limit.kept,
    )
    return SearchReport(
        space=config.space,
        searcher=name,
        ranking=config.proxy,
        proxies=terms.ranking.proxies,
        seeds=terms.seeds,
        budget_ms=config.budget_ms,
        limit=terms.limit.reason,
        within_limit=terms.limit.kept,
        precision=config.precision,
        relative_error=terms.relative_error,
        picks=tuple(
            Pick(**evaluated[place].plain(), recipe=space.recipe(evaluated[place].arch), reason=order.reason(rank))
            for rank, place in enumerate(places[: config.picks])
        ),
        front=_front(evaluated),
        evaluated=tuple(evaluated),
        skipped=tuple(
            Skipped(arch=outcome.arch, text=words_of(space, outcome.arch), reason=outcome.skipped)
            for outcome in searcher.told
            if outcome.skipped is not None
        ),
        rejected=searcher.rejected,
    )


def decisions_of(report: SearchReport, terms: Terms) -> tuple[str, ...]:
    """What the report says, in sentences."""
    lines = [
        f"{len(report.evaluated)} of {terms.space.size:,} students of the space {report.space!r} were scored and "
        f"ranked by {_ranked_by(report)}; {report.rejected} proposals were over the limit."
    ]
    if terms.costs.too_large:
        lines.append(f"{terms.costs.too_large} students do not fit into this machine's memory and count as over it.")
    if report.skipped:
        why, count = Counter(student.reason for student in report.skipped).most_common(1)[0]
        lines.append(f"{len(report.skipped)} students could not be scored and are not ranked; {count} of them: {why}")
    lines.append(f"The first pick is {report.picks[0].text}. {report.picks[0].reason}")
    if report.ranking == "combined":
        lines.append(WHY_COMBINED)
    elif not _random(report.proxies):
        lines.append(WHY_SIZE)
    return tuple(lines)


def _ranked_by(report: SearchReport) -> str:
    names = " + ".join(report.proxies)
    return names if "+".join(report.proxies) == report.ranking else f"{report.ranking} ({names})"


def _candidate(outcome: Outcome, place: int, found: Standing, terms: Terms) -> Candidate:
    cost, names = terms.costs.of(outcome.arch), terms.ranking.proxies
    return Candidate(
        arch=outcome.arch,
        text=words_of(terms.space, outcome.arch),
        score=float(found.scores[place]),
        spread=found.spread(place),
        values=dict(zip(names, outcome.values, strict=True)),
        spreads=dict(zip(names, outcome.spreads, strict=True)),
        predicted_ms=cost.predicted_ms,
        params_m=cost.params / 1e6,
        macs_m=cost.macs / 1e6,
    )


def _front(evaluated: list[Candidate]) -> tuple[Candidate, ...]:
    objectives = np.array([(-c.score, c.cost, c.params_m) for c in evaluated], dtype=np.float64)
    best = [evaluated[place] for place in front_places(objectives)]
    return tuple(sorted(best, key=lambda candidate: (candidate.cost, -candidate.score, candidate.arch)))


def _random(proxies: tuple[str, ...]) -> bool:
    """Whether any of the proxies depends on random weights."""
    return any(proxy_from_name(name).uses_weights for name in proxies)


def _chance(terms: Terms) -> Chance:
    if not _random(terms.ranking.proxies):
        return "none"
    return "known" if terms.seeds > 1 else "unknown"


def _nothing_scored(searcher: Searcher, config: SearchConfig) -> UserError:
    reasons = Counter(outcome.skipped for outcome in searcher.told)
    why, count = reasons.most_common(1)[0]
    return UserError(
        f"None of {len(searcher.told)} students of the space {config.space!r} could be scored by {config.proxy}; "
        f"{count} of them: {why}",
        hint="another ranking (--proxy params+macs), another space (--space), or a wider limit",
    )
