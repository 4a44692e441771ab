"""The sections on what crossed the bus: traffic, what left each party, what is not protected."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from markupsafe import Markup

from python_api.report import charts
from python_api.report.formats import bytes_text
from python_api.report.leakage import leak_table
from python_api.report.numbers import TrafficTotal, traffic_per_round, traffic_totals
from python_api.report.parts import Panels, Section, Table
from python_api.report.reading import RunData
from python_api.report.words import not_protected

__all__ = ["declared", "left_section", "traffic_section"]


def traffic_section(run: RunData) -> Section | None:
    totals = traffic_totals(run, ["op", "direction"])
    if not totals:
        return Section(
            "traffic",
            "Traffic",
            texts=("No message crossed the bus, or none was written down yet.",),
        )
    rounds = traffic_per_round(run)
    whole = traffic_totals(run, [])[()]
    chart = charts.bar_panel(
        [(str(at), (entry["down"], entry["up"])) for at, entry in rounds.items()],
        title="Payload bytes by round, all parties: "
        + "; ".join(
            f"round {at} down {bytes_text(entry['down'])}, up {bytes_text(entry['up'])}"
            for at, entry in list(rounds.items())[:10]
        ),
        y_text=lambda size: bytes_text(size).replace(".0 ", " "),
    )
    by_op = Table(
        caption="Traffic by operation. Payload: tensors and texts. Wire: the same with its "
        "framing, as sent. 1 kB = 1000 bytes.",
        columns=("operation", "direction", "messages", "payload", "wire"),
        rows=tuple(
            (
                op,
                direction,
                str(total.messages),
                bytes_text(total.payload),
                bytes_text(total.wire),
            )
            for (op, direction), total in totals.items()
        ),
        foot=(
            "all",
            "",
            str(whole.messages),
            bytes_text(whole.payload),
            bytes_text(whole.wire),
        ),
        left=(0, 1),
    )
    by_party = traffic_totals(run, ["party", "direction"])
    parties = list(dict.fromkeys(party for party, _ in by_party))
    per_party = Table(
        caption="Traffic by party, over the whole run (payload)",
        columns=("party", "received (down)", "sent (up)"),
        rows=tuple(
            (
                party,
                *(
                    bytes_text(by_party[party, direction].payload)
                    if (party, direction) in by_party
                    else "–"
                    for direction in ("down", "up")
                ),
            )
            for party in parties
        ),
    )
    rows = traffic_totals(run, ["round", "op", "direction"])
    per_round = Table(
        caption="Payload and wire bytes by round, operation and direction, all parties together",
        columns=(
            "round",
            "operation",
            "direction",
            "messages",
            "payload, bytes",
            "wire, bytes",
        ),
        rows=tuple(
            (at, op, direction, str(t.messages), f"{t.payload:,}", f"{t.wire:,}")
            for (at, op, direction), t in rows.items()
        ),
        left=(0, 1, 2),
    )
    server, others = ("the active party", "the others") if run.vertical else ("server", "parties")
    legend = (
        (Markup('<span class="bar-key f0"></span>'), f"down: {server} to {others}"),
        (Markup('<span class="bar-key f1"></span>'), f"up: {others} to {server}"),
    )
    return Section(
        "traffic",
        "Traffic",
        figures=(
            Panels(
                charts=(("Payload per round, all parties together", chart),),
                legend=legend,
            ),
        ),
        tables=(by_op, per_party),
        more=(("Every round, operation and direction", per_round),),
    )


def left_section(run: RunData) -> Section:
    totals = traffic_totals(run, ["op", "direction"])
    rules = declared(run)
    tables = [
        table
        for table in (
            leak_table(run) if run.vertical else None,
            _manifest_table(run, rules, {op for op, _ in totals}),
        )
        if table is not None
    ]
    up = traffic_totals(run, ["op", "direction", "party"])
    parties = list(dict.fromkeys(party for _, _, party in up))
    telling = {str(rule.get("op")) for rule in rules if rule.get("direction") == "up"}
    ops = [op for op, direction in totals if direction == "up" and (op in telling or not rules)]
    if ops:
        tables.append(
            Table(
                caption="What left each party in this run: payload in bytes (numbers count 0)",
                columns=("operation", "messages", *parties),
                rows=tuple(
                    (
                        op,
                        str(totals[op, "up"].messages),
                        *(_bytes(up.get((op, "up", party))) for party in parties),
                    )
                    for op in ops
                ),
            )
        )
    return Section(
        "left",
        "What left each party, and what is not protected",
        points=not_protected(run),
        tables=tuple(tables),
    )


def _manifest_table(
    run: RunData, rules: Sequence[Mapping[str, object]], used: Collection[str]
) -> Table | None:
    """What may leave a party; in vertical runs also what comes back, for it tells of labels."""
    ways = ("up", "down") if run.vertical else ("up",)
    rows = [rule for rule in rules if rule.get("direction") in ways and rule.get("op") in used]
    if not rows:
        return None
    first = ("operation", "direction") if run.vertical else ("operation",)
    keys = ("op", "direction") if run.vertical else ("op",)
    what = (
        "may cross between a passive party and the active one (up: to the active party)"
        if run.vertical
        else "the manifest lets a party send to the server"
    )
    return Table(
        caption=f"What {what}, for the operations of this run. The bus refuses everything else, "
        "at both ends.",
        columns=(*first, "entry", "form", "treatment"),
        rows=tuple(
            (
                *(str(rule.get(key)) for key in keys),
                str(rule.get("entry")),
                _form(rule),
                str(rule.get("treatment")),
            )
            for rule in rows
        ),
        left=tuple(range(len(first) + 3)),
        wrap=True,
    )


def _bytes(total: TrafficTotal | None) -> str:
    return "–" if total is None else f"{total.payload:,}"


def _form(rule: Mapping[str, object]) -> str:
    parts = [str(rule.get("dtype") or rule.get("kind", ""))]
    if rule.get("shape"):
        parts.append(str(rule["shape"]))
    if rule.get("optional"):
        parts.append("(optional)")
    return " ".join(parts)


def declared(run: RunData) -> Sequence[Mapping[str, object]]:
    """The rows of the manifest as the run wrote them down in ``environment.json``."""
    rows = run.environment.get("manifest")
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
