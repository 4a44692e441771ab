"""Models built on the spot, the cache of pre-trained ones, and checkpoints from disk."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from python_api.errors import InputError
from python_api.models.build import build_config, load_base
from python_api.models.disk import read_config
from python_api.models.pretrain import recipe
from tests.python_api.models.kit import tiny_base

TEXTS = [f"{a} {b} and {a}" for a in ("red", "blue", "old") for b in ("fox", "sea", "hill")]


def described(kind="llama", *, steps=3, text="own", path=None, shared=None, **config):
    return SimpleNamespace(
        path=path,
        kind=None if path else kind,
        hidden_size=16,
        layers=2,
        heads=2,
        config=config,
        pretrain=SimpleNamespace(text=text, steps=steps),
        prompt="auto",
        shared=shared,
    )


@pytest.mark.parametrize("kind", ["llama", "gemma", "opt", "gpt2", "bert", "qwen3", "smollm3"])
def test_sizes(kind):
    base = tiny_base(kind)
    config = base.model.config
    assert config.vocab_size == 261 and config.pad_token_id == 0 and config.bos_token_id == 1
    inner = {"opt": "ffn_dim", "gpt2": "n_inner"}.get(kind, "intermediate_size")
    assert getattr(config, inner) == 128
    if hasattr(config, "head_dim"):
        assert config.head_dim == 8
    assert not any(isinstance(m, torch.nn.Dropout) and m.p for m in base.model.modules())
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.encoder is (kind == "bert")


def test_context_fits_and_extra_keys_pass():
    config, _ = build_config("gpt2", hidden_size=16, layers=1, heads=2, context=1024)
    assert config.n_positions == 1024
    config, _ = build_config(
        "llama", hidden_size=16, layers=1, heads=2, extra={"rope_theta": 500.0}
    )
    assert "500.0" in str(config.to_dict())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"kind": "lama"}, "no model family.*'llama'"),
        ({"heads": 3}, "3 does not divide hidden_size = 16"),
        ({"layers": 0}, "model.layers: 0"),
        ({"hidden_size": 12, "heads": 4}, "odd"),
        ({"kind": "t5"}, "encoder-decoder"),
        ({"kind": "vit"}, "no language-model head"),
    ],
)
def test_bad_descriptions_are_one_line(arguments, told):
    sizes = {"kind": "llama", "hidden_size": 16, "layers": 2, "heads": 2} | arguments
    with pytest.raises(InputError, match=told) as error:
        build_config(sizes.pop("kind"), **sizes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_pretraining_is_cached_and_deterministic(kind, cache):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    seen = []
    base = load_base(
        described(kind, steps=12), texts=TEXTS, seed=1, progress=lambda *s: seen.append(s)
    )
    assert [s[:2] for s in seen] == [(10, 12), (12, 12)]
    assert torch.equal(torch.random.get_rng_state(), before)
    first = base.hash
    files = {p.suffix for p in cache.rglob("*") if p.is_file()}
    assert files <= {".safetensors", ".json", ".lock"} and ".safetensors" in files
    assert load_base(described(kind, steps=12), texts=TEXTS, seed=1) is base  # shared in memory
    del base
    told = []
    again = load_base(
        described(kind, steps=12), texts=TEXTS, seed=1, progress=lambda *s: told.append(s)
    )
    assert again.hash == first and not told  # read from the cache
    del again
    shutil.rmtree(cache)
    torch.rand(7)
    assert load_base(described(kind, steps=12), texts=TEXTS, seed=1).hash == first
    assert load_base(described(kind, steps=12), texts=TEXTS, seed=2).hash != first
    assert load_base(described(kind, steps=12), texts=TEXTS[:-1], seed=1).hash != first


def test_pretraining_learns_the_texts(cache):
    losses = []
    load_base(
        described(steps=60), texts=TEXTS, seed=0, progress=lambda s, n, loss: losses.append(loss)
    )
    assert losses[-1] < 0.75 * losses[0]


def test_where_texts_come_from(cache, tmp_path):
    config, _ = build_config("llama", hidden_size=16, layers=1, heads=2)

    def found(text, texts=(), **options):
        return recipe(described(text=text, **options), config, texts=texts, seed=0)

    assert found("none").steps == 0 and found("own", TEXTS).texts == tuple(TEXTS)
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert found(str(tmp_path / "a.txt")).texts == ("one", "two")
    with pytest.raises(InputError, match="no training texts"):
        found("own")
    with pytest.raises(InputError, match=r'models.big.pretrain.text: "own"'):
        found("own", TEXTS, shared="big")
    with pytest.raises(InputError, match=r"nowhere.txt is no file"):
        found(str(tmp_path / "nowhere.txt"))
    (tmp_path / "b.txt").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        found(str(tmp_path / "b.txt"))


def test_disk_checkpoints(tmp_path):
    tiny_base("llama").save(tmp_path / "m")
    base = load_base(described(path=str(tmp_path / "m")))
    assert base.hash == tiny_base("llama").hash and base.path == str(tmp_path / "m")
    assert load_base(described(path=str(tmp_path / "m"))) is base
    half = load_base(described(path=str(tmp_path / "m")), precision="bfloat16")
    assert next(half.model.parameters()).dtype == torch.bfloat16


def test_encoder_from_disk(tmp_path):
    tiny_base("bert").save(tmp_path / "m")
    base = load_base(described(path=str(tmp_path / "m")))
    assert base.encoder and base.hash == tiny_base("bert").hash


def refused(path, told):
    with pytest.raises(InputError, match=told) as error:
        load_base(described(path=str(path)))
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_one_line(tmp_path, monkeypatch):
    refused(tmp_path / "missing", "is no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no config.json")
    tiny_base("llama").save(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.rename(tmp_path / "kept")
    refused(tmp_path / "m", "holds no .*safetensors")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"x")
    refused(tmp_path / "m", "pytorch_model.bin is pickled; convert it")
    (tmp_path / "m" / "pytorch_model.bin").unlink()
    weights.write_bytes(b"torn")
    refused(tmp_path / "m", "model.path: .*did not load|safetensors")
    (tmp_path / "m" / "config.json").write_text("{")
    refused(tmp_path / "m", "model.path")


def test_a_hub_name_offline_is_one_line():
    # In a process of its own: the Hub client reads this variable when it is imported.
    import os
    import subprocess
    import sys

    code = (
        "from python_api.models.disk import read_config\n"
        "from python_api.errors import InputError\n"
        "try:\n    read_config('nobody/nothing-here')\n"
        "except InputError as error:\n    print(error)\n"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert out.stdout.count("\n") == 1, out.stderr
    assert "nobody/nothing-here" in out.stdout and "Hub was not reached" in out.stdout


@pytest.mark.parametrize(
    ("key", "near"),
    [("nonsense_key", None), ("intermediate_sise", "intermediate_size"), ("to_dict", None)],
)
def test_a_key_that_the_config_class_does_not_know_is_refused(key, near):
    with pytest.raises(
        InputError, match=rf"^model\.config\.{key}: LlamaConfig.*known: {near or '[a-z_]+'}$"
    ):
        build_config("llama", hidden_size=16, layers=1, heads=2, extra={key: 1})


def test_the_hub_client_is_silent(capsys, monkeypatch):
    import logging

    from transformers import AutoConfig

    client = logging.getLogger("huggingface_hub.utils._http")

    def unreachable(path):
        client.warning("thrown while requesting HEAD")
        raise OSError("couldn't connect")

    handler = logging.StreamHandler()
    logging.getLogger("huggingface_hub").addHandler(handler)
    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    try:
        with pytest.raises(InputError, match="the Hub was not reached"):
            read_config("nobody/nothing")
        assert "HEAD" not in capsys.readouterr().err
        client.warning("heard again")
        assert "heard again" in capsys.readouterr().err
    finally:
        logging.getLogger("huggingface_hub").removeHandler(handler)
