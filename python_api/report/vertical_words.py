"""What the report of a vertical run says in sentences: the setting, the result, what leaks."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from python_api.report.classes import active_party, alone, lines_of, whole_numbers
from python_api.report.formats import percent, points
from python_api.report.numbers import headline, traffic_totals
from python_api.report.reading import RunData

__all__ = ["about", "fused_name", "gains", "vertical_left"]

_ABOUT = {
    "proto_evfl": "Proto-EVFL as built here: put together from the components that its abstract "
    "names. The paper's formulas are not public, so these are reconstructions, and no figure of "
    "the paper is claimed to be reproduced.",
    "centralised": "All columns stood in one table, in one process: an upper bound that federated "
    "runs are held against, not a federated run.",
    "vfl_local": "The active party trained on its own columns alone. Nothing of another party was "
    "used: what a federated run gains over this one came from the others' columns.",
    "vfl_vanilla": "Vertical training on the aligned rows only, those whose ids all parties hold. "
    "Rows of one party alone were not used.",
    "vfl_balanced": "Vertical training on the aligned rows only, with a loss that weighs every "
    "class alike.",
    "vfl_masked": "Vertical training on every row whose label is known: the parties that lack a "
    "row are masked, and parties are masked at random on aligned rows.",
    "fixmatch_lite": "Masked vertical training, and beside it pseudo-labels: each party takes its "
    "own confident predictions as labels of rows that have none.",
    "fedcvt_lite": "Masked vertical training, and beside it estimated representations: where a "
    "party lacks a row, attention over aligned rows stands in for what it would have sent.",
}


def about(run: RunData) -> tuple[str, ...]:
    """What this algorithm is, and what the report's split of the ids means."""
    lines = [_ABOUT[run.algorithm]] if run.algorithm in _ABOUT else []
    table = proto_table(run)
    if run.algorithm == "vfl_masked" and table.get("adjust") is True:
        lines.append("The log prior of each row's source was added to the logits in training.")
    if run.algorithm == "proto_evfl" and table.get("preset") == "literal":
        lines.append(
            'preset = "literal": every choice is that of the reconstruction, not of what '
            "was measured to work better."
        )
    return tuple(lines)


def proto_table(run: RunData) -> Mapping[str, object]:
    """`[proto_evfl]`, which the baselines read too."""
    table = run.config.get("proto_evfl")
    return table if isinstance(table, Mapping) else {}


def fused_name(run: RunData) -> str:
    """Who makes the prediction that the headline measures."""
    if run.algorithm == "centralised":
        return "all columns in one table"
    if run.algorithm == "vfl_local":
        return f"{active_party(run) or 'the active party'} alone"
    return "all parties together"


def gains(run: RunData) -> str:
    """How far the prediction came, beside what each party reaches alone."""
    head = headline(run, active_party(run))
    if head.last is None or head.before is None:
        if head.before is not None:
            return "Only the accuracy before training was measured; no gain can be told."
        return "No balanced accuracy was measured yet; no gain can be told."
    tested = whole_numbers(run, "ids").get("test")
    on = f"{tested:,} test ids" if tested else "the test ids"
    text = (
        f"Balanced accuracy of {fused_name(run)} on {on} went from {percent(head.before)} to "
        f"{percent(head.last)} ({points(head.gain)})."
    )
    told = [
        f"{party} {percent(headline(run, party, metric=metric).last)}"
        + ("" if metric == "local_balanced_accuracy" else " (not balanced)")
        for party, metric in alone(run).items()
    ]
    if told and run.algorithm not in ("centralised", "vfl_local"):
        text += f" With one party present and the others absent: {', '.join(told)}."
    return (
        f"{text} This is one seed, and a gain over no training at all. What the others' columns "
        "brought is told by vfl_local, and what the algorithm brought by vfl_masked, on the same "
        "data and over several seeds."
    )


def vertical_left(run: RunData) -> tuple[str, ...]:
    """What crossed between the parties, and what it tells whom, by the operations that ran."""
    if run.algorithm == "centralised":
        return (
            "All columns and labels were pooled in this process. Nothing about this run is "
            "federated.",
        )
    ops = {op for (op,) in traffic_totals(run, ["op"])}
    if not ops:
        return ()
    active = active_party(run) or "the active party"
    others = "the other parties" if len(run.configured_parties) > 2 else "the other party"
    lines = [
        f"{active} holds the label and stands where the server stands: what a party sends, "
        f"{active} sees in the clear, row by row. No raw column of a party crossed the bus, and no "
        "label did: the manifest declares neither, and what it does not declare is refused."
    ]
    if "match" in ops:
        lines.append(
            f"Ids were matched in the clear: {active} sent its ids, and each party answered which "
            f"of them it holds. So {others} learned whom {active} knows, and {active} learned whom "
            "they know of these. Private set intersection is not used."
        )
    if ops & {"embed", "evaluate"}:
        lines.append(
            "Representations of rows left every passive party, one vector a row, for training and "
            "for the test ids. A representation is a function of all columns of that row: it can "
            "give away properties of a person, and in bad cases the columns themselves."
            + _of_gradients(run, "representations")
        )
    if "backward" in ops:
        lines.append(_gradients(run))
    if ops & {"begin", "lower"}:
        lines.append(_classifiers(run, ops))
    if "share" in ops:
        lines.append(_shared(run, active))
    lines += [f"{line.rstrip('.')}." for line in lines_of(run, "privacy")]
    return tuple(lines)


def _of_gradients(run: RunData, what: str) -> str:
    noise = proto_table(run).get("gradients") == "noise" and run.algorithm == "proto_evfl"
    return f" No noise was added to {what}; epsilon does not cover them." if noise else ""


def _gradients(run: RunData) -> str:
    table = proto_table(run)
    if table.get("gradients") == "noise" and run.algorithm == "proto_evfl":
        return (
            "The gradients that came back to the passive parties were clipped and covered with "
            f"Gaussian noise: epsilon = {table.get('epsilon', '?')}, delta = "
            f"{table.get('delta', '?')}. It covers neither representations, nor ids, nor heads, "
            "nor what is shared by class."
        )
    return (
        "Gradients sent back reveal labels: a party that receives the gradient of each row's loss "
        "can sort its rows by label without ever being told one. The table says how well that "
        "worked on the gradients of this run. Nothing hides them here"
        + ('; gradients = "noise" covers them.' if run.algorithm == "proto_evfl" else ".")
    )


def _classifiers(run: RunData, ops: Collection[str]) -> str:
    """What comes down beside gradients: heads, with which a party can read its own rows' labels."""
    what = []
    if "begin" in ops:
        what.append(
            "every round its local head (a prototype for every class, among its own "
            "representations, fitted on labels) and the class prior of all parties"
        )
    if "lower" in ops:
        what.append(
            "with a step on its own rows the fused head as it is for a row that it alone holds, "
            "where that step uses it"
        )
    kept = (
        " It answers how many of its own rows it kept, by predicted class."
        if "begin" in ops
        else ""
    )
    return (
        f"A passive party receives {', and '.join(what)}. Such a head names a class for every row "
        f"of that party: it is there to be used, and nothing hides it.{kept}"
    )


def _shared(run: RunData, active: str) -> str:
    told = (
        f"After every round each passive party told {active} how many rows of its own it has and "
        "its estimate of how often each class occurs among them."
    )
    if not any(p.get("label") and p.get("active") is not True for p in run.configured_parties):
        return told
    table = proto_table(run)
    what = (
        "the cosines between its class prototypes"
        if table.get("share") == "relations"
        else "its class prototypes (a prototype stands for the mean row of its class, and of few "
        "rows it is nearly one of them)"
    )
    return (
        f"{told} A party with labels of its own also sent {what} and its class counts, for classes "
        f"with at least {table.get('withhold', 5)} labelled rows; the others are withheld."
    )
