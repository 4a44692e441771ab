"""A byte tokenizer for models that are built on the spot: no vocabulary file, no merges."""

from __future__ import annotations

__all__ = ["SPECIAL_TOKENS", "byte_tokenizer"]

SPECIAL_TOKENS = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}


def byte_tokenizer(*, encoder: bool = False, max_length: int = 1 << 20):
    """A ``PreTrainedTokenizerFast`` over the 256 bytes and five special tokens (ids 0 to 4).

    A text becomes ``<s>`` and its bytes, for encoders with ``</s>`` behind. ``save_pretrained``
    writes it and ``AutoTokenizer.from_pretrained`` reads it back.

    Example:
        >>> tokenizer = byte_tokenizer()
        >>> ids = tokenizer("hé").input_ids
        >>> len(ids), tokenizer.decode(ids, skip_special_tokens=True)
        (4, 'hé')
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = list(SPECIAL_TOKENS.values())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*names, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.add_special_tokens(names)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if encoder else "<s> $A",
        special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in SPECIAL_TOKENS.items()},
    )
