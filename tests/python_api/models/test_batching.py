"""Tokens, truncation, padding and what is counted."""

from __future__ import annotations

import pytest
import torch

from python_api.errors import InputError
from python_api.models.batching import Batcher
from python_api.models.tokenizer import byte_tokenizer
from tests.python_api.models.kit import example

TOKENIZER = byte_tokenizer()


def text_of(ids):
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def make(examples, *, max_length=16, kind="generation", **options):
    tokenizer = options.pop("tokenizer", TOKENIZER)
    return Batcher(examples, tokenizer, max_length=max_length, kind=kind, **options)


def test_tokenizer_is_bytes_and_reloads_without_a_file(tmp_path):
    from transformers import AutoTokenizer

    text = "naïve 数 🙂\n\tend "
    for encoder in (False, True):
        tokenizer = byte_tokenizer(encoder=encoder)
        assert len(tokenizer) == 261
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.encode()) + 1 + encoder
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        tokenizer.save_pretrained(tmp_path / str(encoder))
        again = AutoTokenizer.from_pretrained(tmp_path / str(encoder))
        assert again(text).input_ids == ids
        assert (again.pad_token_id, again.bos_token_id, again.eos_token_id) == (0, 1, 2)
        # Special tokens written as text are text, not a way to end a prompt.
        assert tokenizer.mask_token_id == 4


def test_a_long_text_loses_its_beginning():
    batcher = make(
        [example("0123456789", 0), example("ab", 1)], max_length=6, kind="classification"
    )
    batch = batcher.batch([0, 1])
    assert batch.input_ids[0, 0] == TOKENIZER.bos_token_id
    assert text_of(batch.input_ids[0]) == "56789"
    assert (batcher.cut, batcher.dropped, len(batcher)) == (1, 0, 2)
    assert batch.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch.labels.tolist() == [0, 1] and torch.equal(batch.targets, batch.labels)
    assert batch.weight == 2


def test_an_encoder_keeps_both_marks_when_a_text_is_cut():
    tokenizer = byte_tokenizer(encoder=True)
    batcher = make(
        [example("0123456789", 0)], max_length=6, kind="classification", tokenizer=tokenizer
    )
    ids = batcher.batch([0]).input_ids[0].tolist()
    assert (ids[0], ids[-1]) == (1, 2) and text_of(ids) == "6789"


def test_the_question_is_cut_never_the_answer_and_what_cannot_fit_is_dropped():
    rows = [
        example("what?", answer="42"),
        example("a question that is far too long", answer="42"),
        example("q", answer="an answer that is too long"),
        example("q", answer="0123456789abcd"),  # bos + 14 + end: the answer alone just fits
    ]
    batcher = make(rows)
    assert (batcher.cut, batcher.dropped, batcher.kept) == (2, 1, [0, 1, 3])
    batch = batcher.batch([0, 1, 2])
    assert text_of(batch.input_ids[0]) == "what?\n42"
    assert text_of(batch.input_ids[1]) == "ar too long\n42"
    assert text_of(batch.input_ids[2]) == "0123456789abcd"
    assert all(ids[0] == TOKENIZER.bos_token_id for ids in batch.input_ids)
    for row, answer in enumerate(("42", "42", "0123456789abcd")):
        told = batch.input_ids[row][batch.response_mask[row]]
        assert text_of(told) == answer and told[-1] == TOKENIZER.eos_token_id
    assert batch.weight == 3 + 3 + 15 == len(batch.targets)


def test_prompts_for_decoding_stand_on_the_right():
    batch = make([example("ab", answer="x"), example("abcd", answer="x")], decode=True).batch(
        [0, 1]
    )
    assert batch.left and batch.response_mask is None
    assert batch.attention_mask.tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6]
    assert text_of(batch.input_ids[0]) == "ab\n"


def test_prompt_text_and_chat_template():
    row = [example("2+2", answer="4")]
    batch = make(row, prompt="Q: {question} A: ", max_length=32).batch([0])
    assert text_of(batch.input_ids[0]) == "Q: 2+2 A: 4"
    with pytest.raises(InputError, match=r"holds no {question}"):
        make(row, prompt="Q:")
    chat = byte_tokenizer()
    chat.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}>"
    long = [*row, example("far too long a question", answer="4")]
    batcher = make(long, tokenizer=chat, max_length=12)
    batch = batcher.batch([0, 1])
    assert text_of(batch.input_ids[0]) == "[2+2]>4"
    assert text_of(batch.input_ids[1]) == "[uestion]>4"
    assert batcher.cut == 1 and batch.input_ids.shape[1] <= 12


def test_moving_keeps_everything():
    batch = make([example("a", answer="b")]).batch([0])
    moved = batch.to("cpu")
    assert torch.equal(moved.response_mask, batch.response_mask) and moved.left == batch.left
