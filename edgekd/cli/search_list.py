"""`edgekd search --list`: everything that can stand behind `--space`, `--searcher` and `--proxy`."""

from __future__ import annotations

import json

import click

from edgekd.cli.console import print_table

Entry = dict[str, str]


def print_listing(output_format: str) -> int:
    """Prints one line for each."""
    found = _listing()
    if output_format == "json":
        click.echo(json.dumps(found, indent=2))
        return 0
    for flag, entries in found.items():
        columns = list(entries[0])
        print_table("", [flag, *columns[1:]], [list(entry.values()) for entry in entries], numeric_from=len(columns))
        click.echo()
    click.echo("Proxies joined by + are one ranking: their ranks are added with equal weight.")
    return 0


def _listing() -> dict[str, list[Entry]]:
    """By kind; the first key of an entry is its name."""
    from edgekd.search.proxies.objective import scoring_objectives
    from edgekd.search.proxy import PROXIES
    from edgekd.search.proxy_names import OBJECTIVE_PREFIX
    from edgekd.search.ranking import RANKINGS
    from edgekd.search.searcher import SEARCHERS
    from edgekd.search.space import SPACES

    proxies = [
        {"name": name, "formula": proxy.formula, "teacher": _yes(proxy.uses_teacher), "source": proxy.source}
        for name, proxy in ((name, PROXIES.get(name)) for name in PROXIES)
    ]
    proxies.append(
        {
            "name": f"{OBJECTIVE_PREFIX}NAME",
            "formula": "minus the objective NAME between the untrained networks: " + ", ".join(scoring_objectives()),
            "teacher": "yes",
            "source": "Dong, Li and Wei 2023, arXiv 2303.15678",
        }
    )
    found = {
        "space": [{"name": name, "what": SPACES.get(name).summary} for name in SPACES],
        "searcher": [
            {"name": name, "what": SEARCHERS.get(name).summary, "source": SEARCHERS.get(name).source}
            for name in SEARCHERS
        ],
        "ranking": [{"name": name, "what": RANKINGS.get(name).summary} for name in RANKINGS],
        "proxy": proxies,
    }
    return {kind: entries for kind, entries in found.items() if entries}


def _yes(value: bool) -> str:
    return "yes" if value else "no"
