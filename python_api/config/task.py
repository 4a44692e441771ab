"""A party's task: merged key by key over all levels, and complete."""

from __future__ import annotations

from typing import Any

from python_api.config.keys import table_of
from python_api.config.reader import Layers, Reader
from python_api.config.schema import TaskConfig
from python_api.errors import InputError

__all__ = ["resolve_task"]


def resolve_task(read: Reader, layers: Layers, where: str) -> TaskConfig:
    """Key by key over all levels: [defaults] may hold the columns, the party the file."""
    values: dict[str, Any] = {}
    for place, level in layers:
        if "task" in level:
            new = table_of(level["task"], f"{place}.task", read.source)
            read.keys(new, "task", f"{place}.task")
            # whose data it is, is one choice
            if "data" in new:
                values.pop("train", None)
            if "train" in new:
                values.pop("data", None)
            values |= new
    where = f"{where}.task"
    if isinstance(values.get("text"), str):
        values["text"] = (values["text"],)
    for key in ("text", "columns"):
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    for key in ("test", "validation"):
        if isinstance(values.get(key), int) and not isinstance(values[key], bool):
            values[key] = float(values[key])
    task = read.build(TaskConfig, values, where)
    if task.data is not None and "test" in values:
        raise InputError(
            f"{read.source}: {where}.test: {task.data} brings its own; expected "
            f'data = "{task.data.partition("?")[0]}?test=N" for another size'
        )
    _complete(read, task, where)
    if task.data is not None:  # the columns of a file to predict on
        task = task.model_copy(update={"text": ("text",), "label": "label"})
    files = {
        key: read.path(value)
        for key in ("train", "test", "validation")
        if isinstance(value := getattr(task, key), str)
    }
    return task.model_copy(update=files)


def _complete(read: Reader, task: TaskConfig, where: str) -> None:
    def fail(text: str) -> None:
        raise InputError(f"{read.source}: {where}{text}")

    if task.data is not None:
        from python_api.data.builtin import parse_name

        try:
            parse_name(task.data)
        except InputError as error:
            fail(f".data: {error}")
        if task.kind != "classification":
            fail(f".kind: {task.data} is classification data, got {task.kind!r}")
        for key in ("train", "columns", "text", "label", "question", "answer"):
            if getattr(task, key):
                fail(f": data and {key}; expected data alone")
        if isinstance(task.validation, str):
            fail(": data and a validation file; expected data alone")
        return
    if task.train is None:
        fail(
            ": no train; expected a file (.jsonl, .csv, .tsv, .parquet), or data = "
            '"builtin:sentiment"'
        )
    wanted, other = ("text", "label"), ("question", "answer")
    if task.kind == "generation":
        wanted, other = other, wanted
    for key in wanted:
        if not getattr(task, key):
            fail(f': no {key}; expected the name of the {key} column for kind = "{task.kind}"')
    for key in other:
        if getattr(task, key):
            fail(f'.{key}: is not read for kind = "{task.kind}"; expected {" and ".join(wanted)}')
