"""The adapted model: the middle, heads, pooling, generation, sharing, precision."""

from __future__ import annotations

import pytest
import torch

from python_api.errors import InputError
from python_api.models.adapted import AdaptedModel
from python_api.models.batching import Batch, Batcher
from python_api.models.slots import find_slots
from tests.python_api.models.kit import (
    CLASSED,
    adapted,
    asked_batch,
    classed_batch,
    randomise,
    tiny_base,
)

DECODERS = ("llama", "qwen2", "gemma", "gemma2", "opt", "gpt2")


@pytest.mark.parametrize("kind", [*DECODERS, "bert"])
def test_gradients_reach_every_slots_middle_and_factors(kind):
    model = adapted(kind)
    randomise(model)
    T = torch.zeros(2, len(model.slots), 4, 4, requires_grad=True)
    plain = model.logits(classed_batch(model))
    model.set_middle(T)
    loss, logits = model.loss(classed_batch(model))
    torch.testing.assert_close(logits, plain)  # T = 0 beside the identity is plain LoRA
    loss.backward()
    assert (T.grad.abs().amax(dim=(2, 3)) > 0).all()
    assert all((p.grad != 0).any() for p in model.adapter_parameters())
    assert all(p.grad is None for p in tiny_base(kind).model.parameters())
    for name, parameter in model.named_parameters():
        own = name.startswith(("A.", "B.", "head."))
        assert parameter.requires_grad == own, name


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapter_is_what_the_formula_says(kind):
    """Merging ``W + s B (T + I) A`` by hand into a dense copy gives the same hidden states."""
    import copy

    model = adapted(kind)
    randomise(model)
    T = torch.randn(2, len(model.slots), 4, 4, generator=torch.Generator().manual_seed(2)) * 0.3
    model.set_middle(T)
    dense = copy.deepcopy(tiny_base(kind).model)
    with torch.no_grad():
        for layer, sites in enumerate(model.sites):
            for s, slot in enumerate(model.slots):
                site = sites[slot]
                delta = 2.0 * (
                    model.B[layer][slot] @ (T[layer, s] + torch.eye(4)) @ model.A[layer][slot]
                )
                weight = dense.get_submodule(site.path).weight
                view = weight.t() if site.conv1d else weight
                view[site.rows or slice(None)] += delta
        batch = classed_batch(model)
        want = dense.get_decoder()(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state
        torch.testing.assert_close(model.hidden(batch), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_only_response_positions_get_logits(kind):
    model = adapted(kind, n_labels=None)
    batch = asked_batch(model)
    full = tiny_base(kind).model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    want = full.logits[:, :-1][batch.response_mask[:, 1:]]
    logits = model.logits(batch)
    assert logits.shape == (len("3") + 1 + len("42 is right") + 1, 261)
    torch.testing.assert_close(logits, want)
    assert bytes(i for i in batch.targets.tolist() if i == 2) == b"\x02\x02"  # two ends
    loss, _ = model.loss(batch)
    want = torch.nn.functional.cross_entropy(want, batch.targets)
    torch.testing.assert_close(loss, want)


@pytest.mark.parametrize("kind", DECODERS)
def test_batched_left_padded_cached_decoding_equals_one_by_one(kind):
    model = adapted(kind, n_labels=None)
    randomise(model)
    batch = asked_batch(model, decode=True)
    found = model.generate(batch, max_new_tokens=6)
    for row in range(2):
        ids = batch.input_ids[row][batch.attention_mask[row].bool()][None]
        want: list[int] = []
        for _ in range(6):
            with torch.no_grad():
                model._bind_middle()
                token = int(model.model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
            if token == 2:
                break
            want.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
        assert found[row] == want


@pytest.mark.parametrize("kind", DECODERS)
def test_pooling_takes_the_last_real_token_on_either_side(kind):
    model = adapted(kind)
    right = classed_batch(model)
    ids, mask = right.input_ids.clone(), right.attention_mask.clone()
    for row in range(len(right)):
        n = int(mask[row].sum())
        ids[row], mask[row] = ids[row].roll(-n), mask[row].roll(-n)
    left = Batch(ids, mask, right.labels, left=True)
    torch.testing.assert_close(model.logits(left), model.logits(right), rtol=1e-4, atol=1e-5)


def test_encoders_pool_the_mean_over_real_tokens():
    model = adapted("bert")
    alone = Batcher(CLASSED, model.base.tokenizer, max_length=32, kind="classification").batch([2])
    with torch.no_grad():
        torch.testing.assert_close(model.pooled(alone)[0], model.hidden(alone)[0].mean(0))
        torch.testing.assert_close(
            model.logits(classed_batch(model))[2], model.logits(alone)[0], rtol=1e-4, atol=1e-5
        )


def test_encoders_do_not_generate():
    with pytest.raises(InputError, match="encoder cannot generate"):
        adapted("bert", n_labels=None)


def test_parties_share_frozen_tensors_and_keep_their_own_adapters():
    first, second = adapted("llama"), adapted("llama")
    ours = {p.data_ptr() for p in tiny_base("llama").model.parameters()}
    for model in (first, second):
        assert {p.data_ptr() for p in model.model.parameters()} == ours
    randomise(first)
    assert not torch.equal(first.B[0]["q"], second.B[0]["q"])
    assert not any("Adapted" in type(m).__name__ for m in tiny_base("llama").model.modules())


def test_the_seed_draws_the_adapters():
    first = adapted("opt")
    torch.rand(3)  # the global random state does not matter
    again = adapted("opt")
    for name, value in first.adapter_state().items():
        assert torch.equal(value, again.adapter_state()[name])
    base = tiny_base("opt")
    other = AdaptedModel(base, find_slots(base.model), rank=4, alpha=8, n_labels=3, seed=2)
    assert not torch.equal(other.A[0]["q"], first.A[0]["q"])


def test_building_does_not_move_the_global_random_state():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    adapted("gpt2")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_gradient_checkpointing_changes_no_gradient(kind):
    grads = []
    for checkpointing in (False, True):
        model = adapted(kind, gradient_checkpointing=checkpointing).train()
        randomise(model)
        T = torch.full((2, len(model.slots), 4, 4), 0.1, requires_grad=True)
        model.set_middle(T)
        loss, _ = model.loss(classed_batch(model))
        loss.backward()
        grads.append([T.grad, *(p.grad for p in model.adapter_parameters())])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


def test_bfloat16_base_with_float32_adapters():
    import copy

    from python_api.models.build import Base

    base = tiny_base("llama")
    half = Base(copy.deepcopy(base.model).to(torch.bfloat16), base.tokenizer, encoder=False)
    model = AdaptedModel(half, find_slots(half.model), rank=4, alpha=8, n_labels=3, seed=1)
    randomise(model)
    full = adapted("llama")
    randomise(full)
    assert model.A[0]["q"].dtype == torch.float32
    batch = classed_batch(model)
    assert model.hidden(batch).dtype == torch.bfloat16
    loss, logits = model.loss(batch)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.adapter_parameters())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, full.logits(batch), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_svd_basis(kind):
    model = adapted(kind)
    batch = classed_batch(model)
    before = model.logits(batch)
    model.set_basis_svd()
    assert torch.equal(model.logits(batch), before)  # T = 0 and no identity: the base
    W = model.slot_weight(0, "k")
    A, B = model.A[0]["k"], model.B[0]["k"]
    torch.testing.assert_close(A @ A.t(), torch.eye(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(B.t() @ B, torch.eye(4), rtol=0, atol=1e-5)
    core = B.t() @ W @ A.t()  # the leading singular values on the diagonal, all above 0
    want = torch.diag(torch.linalg.svdvals(W)[:4])
    torch.testing.assert_close(core, want, rtol=1e-4, atol=1e-5)
    assert not A.requires_grad and not B.requires_grad
    assert model.scale == 1 and model.residual is False

    turned = adapted(kind)
    turned.set_basis_svd(rotated=7)
    other = turned.A[0]["k"]
    assert not torch.allclose(other, A, atol=1e-3)
    torch.testing.assert_close(other.t() @ other, A.t() @ A, rtol=0, atol=1e-5)  # one subspace
    with pytest.raises(InputError, match="rank: 40 is above"):
        adapted(kind, rank=40).set_basis_svd()


def test_middle_of_another_shape_is_refused():
    model = adapted("opt")
    with pytest.raises(ValueError, match=r"expected \(2, 6, 4, 4\)"):
        model.set_middle(torch.zeros(2, 7, 4, 4))


def test_adapter_state_goes_round_and_refuses_other_sizes():
    model, other = adapted("gpt2"), adapted("gpt2")
    randomise(model)
    other.load_adapter_state(model.adapter_state())
    batch = classed_batch(model)
    assert torch.equal(model.logits(batch), other.logits(batch))
    with pytest.raises(ValueError, match=r"0.q.A has shape"):
        adapted("gpt2", rank=8).load_adapter_state(model.adapter_state())
    with pytest.raises(ValueError, match="missing or unknown"):
        adapted("gpt2", modules=["q"]).load_adapter_state(model.adapter_state())


def test_all_weights_can_train_and_the_shared_base_stays():
    base = tiny_base("llama")
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    model = adapted("llama", train_base=True)
    loss, _ = model.loss(classed_batch(model))
    loss.backward()
    with torch.no_grad():
        for parameter in model.adapter_parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    assert any(not torch.equal(p, before[n]) for n, p in model.model.named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in base.model.named_parameters())


def test_class_weights_enter_the_loss():
    weight = torch.tensor([1.0, 2.0, 5.0])
    model = adapted("llama", class_weight=weight)
    batch = classed_batch(model)
    loss, logits = model.loss(batch)
    want = torch.nn.functional.cross_entropy(logits, batch.labels, weight=weight)
    torch.testing.assert_close(loss, want)
