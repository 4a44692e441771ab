"""`fedkernels config` of an algorithm that fine-tunes."""

from __future__ import annotations

from python_api.config.defaults import default_source
from python_api.config.ignored import READS
from python_api.config.load import load_config
from python_api.config.schema import (
    EvalConfig,
    H2TuneConfig,
    ModelConfig,
    PartyConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)
from python_api.config.writer import Writer

__all__ = ["explain_tuning"]

HEAD = """\
# {algorithm}: as it stands, this file runs as `fedkernels run {algorithm}` does.
# Your own data: in [party.task] give train = "file.csv", text = "column", label = "column" in place
# of data; paths count from this file. Your own model: in [party.model] path = "a folder"."""


def explain_tuning(algorithm: str, full: bool) -> str:
    """See `explain`."""
    config = load_config(algorithm)
    source = default_source(algorithm)
    write = Writer(full)
    write.lines.append(HEAD.format(algorithm=algorithm))
    top = {key: getattr(config, key) for key in ("algorithm", "seed", "rounds", "device")}
    write.keys(RunConfig, top)
    for name, cls in (("train", TrainConfig), ("eval", EvalConfig), ("h2tune", H2TuneConfig)):
        doc = (cls.__doc__ or "").split(": ", 1)[-1].splitlines()[0]
        write.header(f"[{name}]", doc)
        keys = list(cls.model_fields)
        if name == "h2tune":
            keys = [key for key in keys if key in READS.get(algorithm, keys)]
        values = {key: getattr(getattr(config, name), key) for key in keys}
        if values.get("steps") is not None:
            values["epochs"] = None  # a file takes one of the two
        write.keys(cls, values)
    write.header("[defaults]", "what every [[party]] holds unless it says otherwise")
    write.keys(
        PartyConfig, {"alpha": config.tuning_parties[0].alpha, "modules": "all", "slots": None}
    )
    for name, model in source.get("models", {}).items():
        write.header(f"[models.{name}]", f'a base that parties share: model = "{name}"')
        write.keys(ModelConfig, model)
    for party in source["party"]:
        write.header("[[party]]", "any key of [train] may stand here too")
        own = {"name": party["name"], "rank": party["rank"]}
        if isinstance(party["model"], str):
            own["model"] = party["model"]
        write.keys(PartyConfig, own)
        if not isinstance(party["model"], str):
            write.header("[party.model]", "built on the spot")
            write.keys(ModelConfig, party["model"])
        write.header("[party.task]", "its private data")
        write.keys(TaskConfig, party["task"])
    return "\n".join(write.lines) + "\n"
