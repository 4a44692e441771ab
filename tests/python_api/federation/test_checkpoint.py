"""Round folders: whole or not there."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from python_api.federation import checkpoint, latest_round, load_round, save_round


def states(value=1.0):
    layer = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(layer.weight, value)
    torch.nn.init.zeros_(layer.bias)
    adam = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    adam.step()
    return {
        "server": {"G": torch.full((2, 2), value), "P/shop": torch.eye(2)[:, ::2]},
        "shop": {
            "model": layer.state_dict(),
            "optimiser": adam.state_dict(),
            "random": torch.Generator().manual_seed(3).get_state(),
            "mixed": [1, 2.5, None, True, "x", b"\x00", (1, torch.tensor(2)), {3: {"$odd": 1}}],
        },
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_states_return_as_they_were(tmp_path):
    path = save_round(tmp_path, 3, states(), extra={"metrics.jsonl": 17})
    assert path == tmp_path / "round-000003"
    found = latest_round(tmp_path)
    assert found.round == 3 and found.path == path and found.extra == {"metrics.jsonl": 17}
    back, sent = load_round(path), states()
    assert sorted(back) == ["server", "shop"]
    sent["shop"]["model"] = dict(sent["shop"]["model"])  # an OrderedDict returns as a dict
    assert same(sent["server"], back["server"]) and same(sent["shop"], back["shop"])
    layer = torch.nn.Linear(3, 2)
    layer.load_state_dict(back["shop"]["model"])
    torch.optim.AdamW(layer.parameters()).load_state_dict(back["shop"]["optimiser"])


def test_the_last_two_rounds_are_kept(tmp_path):
    for t in (1, 2, 3, 4):
        save_round(tmp_path, t, states(t))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-000003", "round-000004"]


def test_equal_states_have_equal_hashes_and_extra_does_not_count(tmp_path):
    hashes = []
    for name, value, extra in (("a", 1.0, {}), ("b", 1.0, {"seconds": 3}), ("c", 2.0, {})):
        save_round(tmp_path / name, 1, states(value), extra=extra)
        hashes.append(latest_round(tmp_path / name).hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_torn_folder_is_never_trusted(tmp_path):
    save_round(tmp_path, 1, states(1))
    save_round(tmp_path, 2, states(2))
    whole = tmp_path / "round-000002"
    kept = tmp_path / "kept"
    shutil.copytree(whole, kept)
    names = sorted(file.name for file in whole.iterdir())
    assert len(names) == 5

    def torn():
        found = latest_round(tmp_path)
        with pytest.raises(ValueError, match="whole round folder"):
            load_round(whole)
        shutil.rmtree(whole)
        shutil.copytree(kept, whole)
        return found.round

    for name in names:
        data = (whole / name).read_bytes()
        (whole / name).unlink()
        assert torn() == 1, f"{name} missing"
        for length in {0, 1, len(data) // 2, len(data) - 1}:
            if length < len(data):
                (whole / name).write_bytes(data[:length])
                assert torn() == 1, f"{name} cut to {length}"
        for at in {0, len(data) // 2, len(data) - 1}:
            flipped = bytearray(data)
            flipped[at] ^= 4
            (whole / name).write_bytes(bytes(flipped))
            assert torn() == 1, f"{name} flipped at {at}"
    (whole / "more.json").write_text("{}")
    assert torn() == 1
    whole.rename(tmp_path / "round-000007")  # a folder under another round's name
    assert latest_round(tmp_path).round == 1


def test_nothing_there_is_none(tmp_path):
    assert latest_round(tmp_path) is None
    assert latest_round(tmp_path / "nowhere") is None


@pytest.mark.parametrize("stop_at", range(1, 9))
def test_a_kill_at_any_step_leaves_the_round_before(tmp_path, monkeypatch, stop_at):
    """Every step that touches the disk is cut off once; afterwards saving works again."""
    save_round(tmp_path, 1, states(1))
    before = latest_round(tmp_path).hash
    steps = {"n": 0}

    class Killed(BaseException):
        pass

    def cut(name, module):
        real = getattr(module, name)

        def step(*args, **options):
            steps["n"] += 1
            if steps["n"] == stop_at:
                raise Killed
            return real(*args, **options)

        monkeypatch.setattr(module, name, step)

    cut("_write", checkpoint)
    cut("_sync", checkpoint)
    cut("replace", os)
    with pytest.raises(Killed):
        save_round(tmp_path, 2, states(2))
    monkeypatch.undo()
    found = latest_round(tmp_path)
    # 5 files and the folder are written aside, then renamed; the last step is after the rename
    assert found.round == (2 if stop_at == 8 else 1)
    assert found.round == 2 or found.hash == before
    save_round(tmp_path, 2, states(2))
    assert latest_round(tmp_path).round == 2
    assert not list(tmp_path.glob(".*"))


def test_a_round_that_is_run_again_replaces_itself(tmp_path):
    save_round(tmp_path, 1, states(1))
    first = latest_round(tmp_path).hash
    save_round(tmp_path, 1, states(2))
    assert latest_round(tmp_path).hash != first


def test_what_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"shop.a\[1\].b: a set cannot be kept"):
        save_round(tmp_path, 1, {"shop": {"a": [1, {"b": {1}}]}})
    assert latest_round(tmp_path) is None
    for owner in ("../evil", "", "a.b"):
        with pytest.raises(ValueError, match="owner"):
            save_round(tmp_path, 1, {owner: {}})
    with pytest.raises(ValueError, match="keep"):
        save_round(tmp_path, 1, {}, keep=0)
