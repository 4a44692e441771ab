"""What the report says in sentences. Everything here is plain text; the page escapes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from python_api.report.formats import percent, points
from python_api.report.numbers import headline, traffic_totals
from python_api.report.reading import RunData
from python_api.report.vertical_words import gains, vertical_left

__all__ = [
    "algorithm_title",
    "basis_title",
    "basis_words",
    "comparison_words",
    "not_protected",
    "status_of",
    "verdict",
    "what_ran",
]

_TITLES = {
    "h2tune": "H2Tune",
    "local": "local training alone",
    "fedit": "FedIT (averaged LoRA)",
    "centralised": "all data in one place (centralised)",
    "proto_evfl": "Proto-EVFL",
    "vfl_local": "the active party alone (vfl_local)",
    "vfl_vanilla": "aligned rows only (vfl_vanilla)",
    "vfl_balanced": "aligned rows, classes weighed alike (vfl_balanced)",
    "vfl_masked": "absent parties masked (vfl_masked)",
    "fixmatch_lite": "masked, with pseudo-labels (fixmatch_lite)",
    "fedcvt_lite": "masked, with estimated representations (fedcvt_lite)",
}
_NUMBER_WORDS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)


def algorithm_title(run: RunData) -> str:
    return _TITLES.get(run.algorithm, run.algorithm)


def _count(number: int, noun: str, plural: str | None = None) -> str:
    word = _NUMBER_WORDS[number] if 0 <= number < len(_NUMBER_WORDS) else str(number)
    return f"{word} {noun if number == 1 else plural or noun + 's'}"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def status_of(run: RunData) -> str:
    """``"finished"``, ``"running"``, ``"interrupted"``, ``"failed"`` or ``"unknown"``."""
    status = run.status.get("status", run.status.get("state"))
    return status if status in ("finished", "running", "interrupted", "failed") else "unknown"


def _last_round(run: RunData) -> int | None:
    last = run.status.get("round")
    return last if isinstance(last, int) and not isinstance(last, bool) else None


def _status_sentence(run: RunData) -> str:
    rounds, last = run.rounds, _last_round(run)
    reached = (
        "before its first round was complete"
        if not last
        else f"after round {last} of {rounds}"
        if rounds is not None
        else f"after round {last}"
    )
    status = status_of(run)
    if status == "finished":
        return "The run finished."
    if status == "interrupted":
        return f"The run was interrupted {reached}; what follows is what it had measured by then."
    if status == "failed":
        reason = str(run.status.get("error") or run.status.get("reason") or "").strip()
        return f"The run failed {reached}" + (f": {reason.rstrip('.')}." if reason else ".")
    if status == "running":
        return f"The run had not ended when this report was written; it stood {reached}."
    return "The folder does not say whether the run finished."


def what_ran(run: RunData) -> str:
    parties = run.configured_parties
    who = _count(len(parties), "party", "parties") if parties else "the parties"
    rounds = f" for {_count(run.rounds, 'round')}" if run.rounds is not None else ""
    seed = run.config.get("seed", "?")
    return f"{who[0].upper()}{who[1:]}{rounds} with {algorithm_title(run)}, seed {seed}."


def verdict(run: RunData) -> str:
    """One paragraph: what ran, whether it ended, and who got better by how much over "before"."""
    return " ".join((what_ran(run), _status_sentence(run), _gains(run)))


def _gains(run: RunData) -> str:
    if run.vertical:
        return gains(run)
    heads = [headline(run, party) for party in run.parties]
    heads = [head for head in heads if head.before is not None or head.last is not None]
    measured = [(head, head.gain) for head in heads if head.gain is not None]
    if not measured:
        if any(head.before is not None for head in heads):
            return "Only the accuracy before training was measured; no gain can be told."
        return "No accuracy was measured yet; no gain can be told."
    better = [head for head, gain in measured if gain > 0]
    told = "; ".join(
        f"{head.party} went from {percent(head.before)} to {percent(head.last)} ({points(gain)})"
        for head, gain in measured
    )
    if len(measured) == 1:
        opening = "Accuracy on its own test data"
    elif len(better) == len(measured):
        opening = "Every party got better on its own test data"
    elif not better:
        opening = "No party got better on its own test data"
    else:
        some = _count(len(better), "party", "parties").split()[0].capitalize()
        total = _count(len(measured), "party", "parties")
        opening = f"{some} of {total} got better on their own test data"
    return (
        f"{opening}: {told}. These are gains over no training at all; whether the parties learned "
        "from each other is another question, which only a run without sharing answers."
    )


def comparison_words(runs: Sequence[RunData]) -> str:
    names = _list([f"{run.name} ({algorithm_title(run)})" for run in runs])
    seeds = {str(run.config.get("seed", "?")) for run in runs}
    seed = f"all with seed {seeds.pop()}" if len(seeds) == 1 else "with different seeds"
    first = {run.vertical: run.name for run in reversed(runs)}
    return (
        f"{names} stand side by side, {seed}; differences are taken to "
        f"{_list([run.name for run in runs if run.name in first.values()])}. A "
        "difference between single runs can be chance, so no winner is named here: evidence needs "
        "several seeds and an interval."
    )


def basis_title(run: RunData) -> str:
    if run.algorithm != "h2tune":
        return "What is shared"
    return f'The basis: "{run.table.get("basis", "trained")}"'


def basis_words(run: RunData) -> tuple[str, ...]:
    """What the basis of the shared middle means for transfer between the parties."""
    if run.algorithm == "local":
        return ("Every party trained alone. Nothing it learned reached another party.",)
    if run.algorithm == "centralised":
        return (
            "All training data stood in one place. This is the upper bound that federated runs are "
            "held against, not a federated run.",
        )
    if run.algorithm == "fedit":
        return (
            "Parties of one architecture average their LoRA matrices A and B after every round, so "
            "they work in one common basis by construction.",
        )
    if run.algorithm != "h2tune":
        return ()
    return (
        *_h2tune_basis(str(run.table.get("basis", "trained"))),
        *_h2tune_share(run.table),
    )


def _h2tune_basis(basis: str) -> tuple[str, ...]:
    if basis == "svd":
        return (
            "A and B are the leading singular vectors of each party's own frozen weights and are "
            "not trained, so parties on the same base model read and write the shared middle in "
            "the same basis. The middle is shared among parties whose frozen base has the same "
            "hash, and nobody else.",
            "In a small experiment (three decoders on one base, one party with 64 examples, ten "
            "paired seeds) this gained that party 13.4 points (95 % interval 9.7 to 17.8) over "
            "the same layer unshared and 18.1 points (13.2 to 23.2) over LoRA alone. That was "
            "another run than this one: on your data, compare with share = false.",
        )
    if basis == "rotated":
        return (
            "This is a control: every party's frozen basis is turned by a private orthogonal "
            'matrix, which takes away the common basis that "svd" relies on and nothing else. '
            'What it loses against "svd" is what the common basis was worth.',
        )
    return (
        "Each party trains its own A and B around the shared middle: the method as published. A "
        "and B can undo any change of the middle without changing an output (A to PA, B to BQ⁻¹, "
        "I + T to Q(I + T)P⁻¹), so what one party puts into the middle need not mean anything to "
        "another. As published, no transfer between parties was seen.",
        "In a small experiment (three decoders, one party with 64 examples, ten paired seeds) "
        "sharing changed that party's accuracy by −0.5 points (95 % interval −1.7 to 0.5) "
        "against not sharing, and by +0.4 points (−0.7 to 1.9) against sharing shuffled tensors. "
        'Accuracy above "before" in this report is therefore not a sign of transfer. Runs with '
        'share = false and share = "shuffled" show whether there is any on your data; for '
        'parties on one base model, basis = "svd" is the one where transfer was seen.',
    )


def _h2tune_share(table: Mapping[str, object]) -> tuple[str, ...]:
    share = table.get("share", True)
    if share is False:
        return (
            "In this run share = false: every party got its own tensor back, so nothing was "
            "learned from others. It is the control for a run that shares.",
        )
    if share == "shuffled":
        return (
            'In this run share = "shuffled": every party got another party\'s tensor with its '
            "entries in random order. It is the control that keeps the numbers and removes their "
            "meaning.",
        )
    return ()


_NOTHING_SENT = "Nothing crossed the bus, so nothing left a party by it."


def _sent(run: RunData) -> tuple[str, ...]:
    if run.algorithm == "centralised":
        return (
            "All training data was pooled in this process. Nothing about this run is federated but "
            "the measuring, and the bus saw metrics only.",
        )
    if run.algorithm == "local":
        return (
            "Only metrics and progress crossed the bus: accuracies, losses and step counts. No "
            "model, no update and no data left a party by it.",
        )
    lines = [
        "The server sees what crossed the bus in the clear, for every party by itself. Updates of "
        "a model can give away properties of the training data, in bad cases parts of it; no "
        "noise, clipping, encryption or secure sum was applied to them."
    ]
    if run.algorithm == "h2tune":
        lines = [
            "No training text, label, base weight, private head and none of the matrices A and B "
            "crossed the bus: the manifest declares none of them, and what it does not declare is "
            "refused.",
            *lines,
            "The selected entries and the layer relation of a party show which parts of the "
            "middle its data uses, and its metrics show how well it does.",
        ]
    if run.algorithm == "fedit":
        lines.append("In this algorithm the update is all of A and B, in every round.")
    return tuple(lines)


def not_protected(run: RunData) -> tuple[str, ...]:
    """What the run does not keep from others, in plain words."""
    if run.vertical:
        lines = list(vertical_left(run)) or [_NOTHING_SENT]
    else:
        lines = list(_sent(run)) if traffic_totals(run, ["direction"]) else [_NOTHING_SENT]
    lines.append(
        "All parties of this run lived in one process on one machine. That simulates a "
        "federation; it separates nobody from anybody."
    )
    lines.append(
        "The run folder holds every party's model and checkpoint in the clear, and this page shows "
        "the configuration with the paths of their files. Mind whom you hand them to."
    )
    return tuple(lines)
