"""What is written loads elsewhere: vanilla PEFT, plain transformers, and our own factors."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from python_api.errors import InputError
from python_api.models.export import HEAD_FILE, load_native
from tests.python_api.models.kit import adapted, classed_batch, randomise

KINDS = ("llama", "qwen2", "gemma", "opt", "gpt2", "bert")
SUBSETS = ("all", ("q", "down"), ("v", "o"))


def trained(kind, modules="all", *, svd=False, n_labels=3):
    model = adapted(kind, modules=modules, n_labels=n_labels)
    randomise(model)
    draw = torch.Generator().manual_seed(9)
    T = torch.randn(2, len(model.slots), 4, 4, generator=draw) * 0.3
    if svd:
        model.set_basis_svd()
    model.set_middle(T, residual=not svd)
    return model


def outputs(plain, batch, *, encoder):
    """Last hidden states (encoders) or the logits of the language model (decoders)."""
    with torch.no_grad():
        out = plain.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    real = batch.attention_mask.bool()
    return (out.last_hidden_state if encoder else out.logits)[real]


def own_outputs(model, batch):
    real = batch.attention_mask.bool()
    with torch.no_grad():
        if model.encoder:
            return model.hidden(batch)[real]
        model._bind_middle()
        return model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[
            real
        ]


def auto(model):
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModel if model.encoder else AutoModelForCausalLM


@pytest.mark.parametrize("svd", [False, True])
@pytest.mark.parametrize("modules", SUBSETS)
@pytest.mark.parametrize("kind", KINDS)
def test_vanilla_peft_loads_it(kind, modules, svd, tmp_path, recwarn):
    peft = pytest.importorskip("peft")
    model = trained(kind, modules, svd=svd)
    model.base.save(tmp_path / "base")
    model.export(tmp_path / "peft")
    assert (tmp_path / "peft" / "adapter_model.safetensors").is_file()
    base = auto(model).from_pretrained(tmp_path / "base")
    batch = classed_batch(model)
    before = outputs(base, batch, encoder=model.encoder)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "peft")
    told = [str(w.message) for w in recwarn]
    assert not [text for text in told if "missing" in text or "fan_in" in text or "Found" in text]
    after = outputs(loaded, batch, encoder=model.encoder)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, own_outputs(model, batch), rtol=0, atol=1e-4)
    # With the head beside the adapter the class logits are equal too.
    head = load_file(tmp_path / "peft" / HEAD_FILE)
    with torch.no_grad():
        inner = loaded.get_base_model()
        inner = inner if model.encoder else inner.get_decoder()
        hidden = inner(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state
        mask = batch.attention_mask
        if model.encoder:
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            pooled = hidden[torch.arange(3), mask.sum(1) - 1]
        logits = pooled @ head["weight"].t() + head["bias"]
    torch.testing.assert_close(logits, model.logits(batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_a_plain_checkpoint(kind, tmp_path):
    from transformers import AutoTokenizer

    model = trained(kind)
    batch = classed_batch(model)
    frozen = {n: p.clone() for n, p in model.base.model.named_parameters()}
    model.export(tmp_path, format="merged")
    plain = auto(model).from_pretrained(tmp_path)
    assert type(plain) is type(model.base.model)
    torch.testing.assert_close(
        outputs(plain, batch, encoder=model.encoder), own_outputs(model, batch), rtol=0, atol=1e-4
    )
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("ab").input_ids == model.base.tokenizer("ab").input_ids
    assert (tmp_path / HEAD_FILE).is_file()
    assert all(torch.equal(p, frozen[n]) for n, p in model.base.model.named_parameters())


@pytest.mark.parametrize("svd", [False, True])
def test_native_goes_round(svd, tmp_path):
    model = trained("gpt2", svd=svd)
    model.export(tmp_path, format="native")
    other = adapted("gpt2")
    load_native(other, tmp_path)
    batch = classed_batch(model)
    assert torch.equal(model.logits(batch), other.logits(batch))
    with pytest.raises(InputError, match="rank 4 was saved, the model has 8"):
        load_native(adapted("gpt2", rank=8), tmp_path)


def test_fused_layers_are_stacked(tmp_path):
    model = trained("gpt2", ("q", "v", "up"))
    model.export(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    fused = "transformer.h.1.attn.c_attn"
    assert config["rank_pattern"][fused] == 8 and config["alpha_pattern"][fused] == 16
    assert config["r"] == 4 and config["lora_alpha"] == 8 and config["fan_in_fan_out"] is True
    assert sorted(config["target_modules"]) == sorted(
        f"transformer.h.{l}.{name}" for l in (0, 1) for name in ("attn.c_attn", "mlp.c_fc")
    )
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    B = tensors[f"base_model.model.{fused}.lora_B.weight"]
    assert B.shape == (96, 8)
    assert B[32:64].abs().max() == 0  # k is not adapted
    assert B[:32, 4:].abs().max() == 0 and B[64:, :4].abs().max() == 0


def test_a_generation_party_has_no_head_file(tmp_path):
    model = trained("llama", n_labels=None)
    model.export(tmp_path)
    assert not (tmp_path / HEAD_FILE).exists()


def test_unknown_format_and_weights_without_adapters(tmp_path):
    with pytest.raises(InputError, match="expected one of peft merged native"):
        adapted("llama").export(tmp_path, format="onnx")
    whole = adapted("llama", train_base=True)
    with pytest.raises(InputError, match="expected merged"):
        whole.export(tmp_path)
    with torch.no_grad():
        next(whole.model.parameters()).add_(0.5)
    whole.export(tmp_path / "whole", format="merged")
    plain = auto(whole).from_pretrained(tmp_path / "whole")
    batch = classed_batch(whole)
    torch.testing.assert_close(outputs(plain, batch, encoder=False), own_outputs(whole, batch))
