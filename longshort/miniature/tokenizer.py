"""The miniature's two tokenizers: byte-level, so lossless on any text, with a token for each phrase of the world.

The roles' vocabularies differ on purpose (ids, sizes, phrases): code that confuses the two models' ids fails here in
seconds, not on the first pair of real models.
"""

from __future__ import annotations

from longshort.dialogue.encoding import ROLE_TAGS
from longshort.miniature.world import PHRASES, RESTATE, WAIT
from longshort.types import LONG, ROLES, SHORT, LongShortError

FINAL_NOTICE = "Last turn. "
"""What the short model reads before its last possible turn: one token in both vocabularies."""
PROBLEM, SOLVE, EOS, PAD = "<|problem|>", "<|solve|>", "<eos>", "<pad>"
SPECIAL = (PAD, EOS, PROBLEM, SOLVE, *ROLE_TAGS)
CHAT_TEMPLATE = PROBLEM + "{{ messages[0].content }}" + SOLVE
VOCABULARY = {
    LONG: (*PHRASES, FINAL_NOTICE),
    SHORT: (*(phrase for phrase in reversed(PHRASES) if phrase not in (RESTATE, WAIT)), FINAL_NOTICE),
}
"""The phrases of each role. The short model never writes RESTATE and WAIT and reads them byte by byte."""


def build_tokenizer(role: str):
    """Return the PreTrainedTokenizerFast of `role`; raises LongShortError for an unknown role.

    It has 256 byte tokens without merges, one token per phrase (the longest match wins) and special tokens for the
    role tags, the problem markers, the end and the padding. Phrases are added tokens, so `added_words` names them as
    text (longshort/dialogue/plain_text.py).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if role not in ROLES:
        raise LongShortError(f"there is a tokenizer for each of {', '.join(ROLES)}, not for {role!r}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=role != LONG)
    backend = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(phrase, normalized=False) for phrase in VOCABULARY[role]])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=PAD,  # never needed, but without one AutoTokenizer adds a Qwen2 token that has no embedding
        extra_special_tokens=[token for token in SPECIAL if token not in (EOS, PAD)],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        added_words=list(VOCABULARY[role]),
    )
