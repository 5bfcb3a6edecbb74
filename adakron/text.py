"""Text to token ids, exactly as transformers would, without padding and outside the interpreter lock.

Knows the tokenizer; nothing of adapters or batches.
"""

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

TextOrPair = str | tuple[str, str]


def tokenise(
    tokenizer: Tokenizer, texts: Sequence[TextOrPair], max_lengths: Sequence[int]
) -> list[tuple[Encoding, bool]]:
    """(encoding, truncated) for each text or pair, at most max_lengths[i] tokens with special ones counted.

    All different texts go through one `encode_batch`, which releases the interpreter lock; a text that many adapters
    are asked about is tokenised once. Pairs are cut longest first, as transformers' truncation="longest_first" does.
    """
    different = list(dict.fromkeys(texts))
    encodings = dict(zip(different, tokenizer.encode_batch_fast(different), strict=True))
    truncated: dict[tuple[TextOrPair, int], Encoding] = {}
    result = []
    for text, most in zip(texts, max_lengths, strict=True):
        encoding = encodings[text]
        too_long = len(encoding.ids) > most
        if too_long:
            if (text, most) not in truncated:
                truncated[text, most] = _truncated(tokenizer, text, most)
            encoding = truncated[text, most]
        result.append((encoding, too_long))
    return result


def _truncated(tokenizer: Tokenizer, text: TextOrPair, most: int) -> Encoding:
    """The tokenizer's own truncation is a setting shared by all threads; cutting its pieces is not."""
    if isinstance(text, str):
        single = tokenizer.encode(text, add_special_tokens=False)
        single.truncate(most - tokenizer.num_special_tokens_to_add(False))
        return tokenizer.post_process(single)
    first, second = (tokenizer.encode(part, add_special_tokens=False) for part in text)
    budget = most - tokenizer.num_special_tokens_to_add(True)
    shorter, longer = sorted((len(first.ids), len(second.ids)))
    longer = max(shorter, budget - shorter) if shorter <= budget else shorter
    if shorter + longer > budget:
        shorter = budget // 2
        longer = shorter + budget % 2
    first_is_longer = len(first.ids) > len(second.ids)
    first.truncate(longer if first_is_longer else shorter)
    second.truncate(shorter if first_is_longer else longer)
    return tokenizer.post_process(first, second)
