"""Tokenizers of every family, built by hand: small enough to read, with the seams and added tokens of the real ones."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
UNMARKED = ("<think>", "</think>", "<tool_call>")
"""Added, but not marked special, as in Qwen3 and R1."""
LETTERS = [chr(code) for code in range(33, 127)] + ["\n", "é"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = "<s>[INST] {{ messages[0].content | trim }} [/INST]"
"""Llama 2's: no control token stands between the question and the template's own words."""
THINKING = CHATML.replace("assistant\n", "assistant\n<think>\n")
"""R1's and QwQ's: the template itself opens the thought."""


def wrapped(backend: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in UNMARKED])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


def byte_level(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Qwen's and Llama 3's family."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return wrapped(backend, template)


def _sentencepiece() -> Tokenizer:
    """Letters, words that begin with a space, bytes for all else."""
    words = ["▁t", "he", "▁the", "▁[", "▁W"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, *words]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "["), ("▁", "W")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))


def llama2(template: str | None = INST) -> PreTrainedTokenizerFast:
    """Llama 2's family: a space before every text, written by a normalizer."""
    backend = _sentencepiece()
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(backend, template)


def metaspace(template: str | None = INST) -> PreTrainedTokenizerFast:
    """Mistral's family: a space before the first text only, written by a pre-tokenizer."""
    backend = _sentencepiece()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return wrapped(backend, template)


def unigram(template: str | None = INST) -> PreTrainedTokenizerFast:
    """T5's family: the control tokens are pieces of the model's own vocabulary."""
    pieces = [("<unk>", 0.0), *((token, 0.0) for token in (*SPECIAL, *UNMARKED) if token != "<unk>"), ("▁the", -2.0)]
    backend = Tokenizer(models.Unigram([*pieces, ("▁", -3.0), *((letter, -4.0) for letter in LETTERS)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return wrapped(backend, template)


FAMILIES = {"byte_level": byte_level, "llama2": llama2, "metaspace": metaspace, "unigram": unigram}
