"""The slot table: paths, shapes, and that an adapter at each slot changes the output."""

from __future__ import annotations

import pytest
import torch

from python_api.errors import InputError
from python_api.models.slots import SLOTS, find_slots
from tests.python_api.models.kit import adapted, classed_batch, tiny_base

ALL = set(SLOTS)
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3"), ALL),
    **dict.fromkeys(("opt", "gpt2", "bert"), ALL - {"gate"}),
}
WIDTHS = {"q": (32, 32), "k": (32, 32), "v": (32, 32), "o": (32, 32)}
WIDTHS |= {"gate": (32, 128), "up": (32, 128), "down": (128, 32)}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_slot_has_the_right_shape_and_changes_the_output(kind):
    model = adapted(kind)
    assert set(model.slots) == FAMILIES[kind]
    assert model.n_layers == 2
    batch = classed_batch(model)
    before = model.logits(batch)
    for slot in model.slots:
        wide, out = WIDTHS[slot]
        if slot in ("k", "v") and kind in ("llama", "mistral", "qwen2", "qwen3", "smollm3"):
            out = 16  # two key-value heads of four
        for layer in range(2):
            A, B = model.A[layer][slot], model.B[layer][slot]
            assert A.shape == (4, wide) and B.shape == (out, 4)
            assert model.slot_weight(layer, slot).shape == (out, wide)
            with torch.no_grad():
                B.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
            moved = (model.logits(batch) - before).abs().max()
            assert moved > 1e-5, f"{kind} layer {layer} {slot}"
            with torch.no_grad():
                B.zero_()


def test_starts_as_the_base():
    for kind in ("llama", "gpt2", "bert"):
        model = adapted(kind)
        batch = classed_batch(model)
        base = tiny_base(kind).model
        inner = base if model.encoder else base.get_decoder()
        with torch.no_grad():
            want = inner(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).last_hidden_state
        torch.testing.assert_close(model.hidden(batch), want, rtol=0, atol=1e-6)


def test_bert_output_dense_is_not_attention_output_dense():
    sites = find_slots(tiny_base("bert").model)
    assert sites[0]["o"].path == "encoder.layer.0.attention.output.dense"
    assert sites[0]["down"].path == "encoder.layer.0.output.dense"


def test_gpt2_thirds():
    sites = find_slots(tiny_base("gpt2").model)[1]
    assert [sites[s].rows for s in "qkv"] == [slice(0, 32), slice(32, 64), slice(64, 96)]
    assert all(site.conv1d for site in sites.values())
    model = adapted("gpt2", modules=["k"])
    fused = tiny_base("gpt2").model.get_submodule(sites["k"].path).weight
    assert torch.equal(model.slot_weight(1, "k"), fused.t()[32:64])


def test_modules_and_absent_slots():
    base = tiny_base("opt").model
    assert list(find_slots(base, modules=["down", "gate", "q"])[0]) == ["q", "down"]
    with pytest.raises(InputError, match="opt has none of gate"):
        find_slots(base, modules=["gate"])
    with pytest.raises(InputError, match="unknown slot 'qq'"):
        find_slots(base, modules=["qq"])


def test_unlisted_family_names_what_was_found_and_a_table_helps():
    import transformers

    config = transformers.GPTNeoXConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = transformers.GPTNeoXForCausalLM(config)
    with pytest.raises(InputError, match=r"gpt_neox.*slots table.*dense_h_to_4h") as error:
        find_slots(model)
    assert "\n" not in str(error.value)
    sites = find_slots(model, slots={"up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"})
    assert sites[0]["up"].path == "gpt_neox.layers.0.mlp.dense_h_to_4h"
    with pytest.raises(InputError, match=r"slots.up: gpt_neox.layers.0.mlp.nothing is no linear"):
        find_slots(model, slots={"up": "mlp.nothing"})
    with pytest.raises(InputError, match="unknown slot 'upp'"):
        find_slots(model, slots={"upp": "mlp.dense_h_to_4h"})
