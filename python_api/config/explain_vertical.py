"""`fedkernels config` of an algorithm on tables."""

from __future__ import annotations

from python_api.config.defaults import default_source
from python_api.config.ignored import READS_TABLES
from python_api.config.keys import PLACES
from python_api.config.load import load_config
from python_api.config.presets import vertical_preset
from python_api.config.schema import (
    DataConfig,
    EncoderConfig,
    EvalConfig,
    ProtoEvflConfig,
    RunConfig,
    TrainConfig,
    VerticalPartyConfig,
)
from python_api.config.writer import Writer

__all__ = ["explain_vertical"]

HEAD = """\
# {algorithm}: as it stands, this file runs as `fedkernels run {algorithm}` does.
# Your own data: in every [[party]] give table = "file.csv" and id = "column"; in [data] the label
# column of the active party, and overlap = 1.0, imbalance = 1.0; paths count from this file."""
ABOUT = {
    "RunConfig.rounds": "each a pass over the active party's training rows",
    "TrainConfig.epochs": "passes over the active party's training rows per round",
    "TrainConfig.steps": "steps of the fused model per round, in place of epochs",
    "TrainConfig.batch_size": "rows per step",
    "TrainConfig.lr": "learning rate of AdamW",
    "TrainConfig.weight_decay": "decay of all weights",
    "TrainConfig.keep": '"best": the model that is best on the validation rows; "last"',
    "VerticalPartyConfig.l_ct": "this party's own l_ct, over that of [proto_evfl]",
}


def explain_vertical(algorithm: str, full: bool) -> str:
    """See `explain`."""
    config = load_config(algorithm)
    source = default_source(algorithm)
    places = PLACES["vertical"]
    built_in = vertical_preset({})
    defaults = {f"RunConfig.{key}": value for key, value in built_in.top.items()}
    defaults |= {f"TrainConfig.{key}": value for key, value in built_in.train.items()}
    write = Writer(full, ABOUT, defaults)
    write.lines.append(HEAD.format(algorithm=algorithm))
    top = {key: getattr(config, key) for key in ("algorithm", "seed", "rounds", "device")}
    write.keys(RunConfig, top)
    own = tuple(key for key in places["proto_evfl"] if key != "adjust")
    reads = {"proto_evfl": READS_TABLES.get(algorithm, own)}
    for name, cls in (
        ("train", TrainConfig),
        ("eval", EvalConfig),
        ("data", DataConfig),
        ("proto_evfl", ProtoEvflConfig),
    ):
        doc = (cls.__doc__ or "").split(": ", 1)[-1].splitlines()[0].rstrip(".")
        write.header(f"[{name}]", doc)
        keys = [key for key in places[name] if key in reads.get(name, places[name])]
        values = {key: getattr(getattr(config, name), key) for key in keys}
        write.keys(cls, values)
    for party in source["party"]:
        write.header("[[party]]", "any key of [train] may stand here too")
        write.keys(VerticalPartyConfig, {k: v for k, v in party.items() if k != "model"})
        write.header("[party.model]", "its encoder")
        write.keys(EncoderConfig, party["model"])
    return "\n".join(write.lines) + "\n"
