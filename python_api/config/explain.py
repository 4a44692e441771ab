"""`fedkernels config`: a commented TOML that runs as it is."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from python_api.config.defaults import default_source
from python_api.config.ignored import READS
from python_api.config.load import load_config
from python_api.config.schema import (
    EvalConfig,
    H2TuneConfig,
    ModelConfig,
    PartyConfig,
    RunConfig,
    Table,
    TaskConfig,
    TrainConfig,
)

__all__ = ["explain"]

WIDTH = 34  # where comments begin, if the line leaves room
HEAD = """\
# {algorithm}: as it stands, this file runs as `fedkernels run {algorithm}` does.
# Your own data: in [party.task] give train = "file.csv", text = "column", label = "column" in place
# of data; paths count from this file. Your own model: in [party.model] path = "a folder"."""


def explain(algorithm: str = "h2tune", *, full: bool = False) -> str:
    """The default config of `algorithm` as TOML with a comment per key.

    full: the comment stands above the key, with what the key takes and its default, and keys
        without a value are listed too.

    >>> explain("h2tune").splitlines()[3].split(" #")[0].rstrip()
    'algorithm = "h2tune"'
    """
    config = load_config(algorithm)
    source = default_source(algorithm)
    write = _Writer(full)
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
    write.keys(PartyConfig, {"alpha": config.parties[0].alpha, "modules": "all", "slots": None})
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


class _Writer:
    def __init__(self, full: bool) -> None:
        self.full = full
        self.lines: list[str] = []
        self.told: set[str] = set()

    def header(self, name: str, comment: str) -> None:
        self.lines += ["", f"{name:<{WIDTH}}# {comment}".rstrip()]

    def keys(self, cls: type[Table], values: dict[str, Any]) -> None:
        if self.full:
            values = values | self._missing(cls, values)
        for key, value in values.items():
            field = cls.model_fields.get(key)
            comment = field.description if field else None
            if key == "model":
                comment = "a name from [models]"
            line = f"# {key} = ..." if value is None else f"{key} = {_toml(value)}"
            if value is None and not self.full:
                continue
            known = f"{cls.__name__}.{key}" in self.told
            self.told.add(f"{cls.__name__}.{key}")
            if not self.full:
                self.lines.append(line if known else f"{line:<{WIDTH}}# {comment}")
                continue
            if not known:
                self.lines.append(f"# {comment}{_takes(field)}")
            self.lines.append(line)

    def _missing(self, cls: type[Table], values: dict[str, Any]) -> dict[str, Any]:
        """Keys that have no place in the default config: named once, commented out."""
        if cls not in (ModelConfig, TaskConfig):
            return {}
        return {
            key: None
            for key in cls.model_fields
            if key not in values and key != "shared" and f"{cls.__name__}.{key}" not in self.told
        }


def _takes(field: FieldInfo | None) -> str:
    """`; one of ...; default ...`."""
    if field is None:
        return ""
    text = ""
    if get_origin(field.annotation) is Literal:
        text = "; one of " + ", ".join(_toml(choice) for choice in get_args(field.annotation))
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default is None or isinstance(default, dict | Table) or default == ():
        return text
    return f"{text}; default {_toml(default)}"


def _toml(value: Any) -> str:
    import tomli_w

    return tomli_w.dumps({"x": list(value) if isinstance(value, tuple) else value})[4:].strip()
