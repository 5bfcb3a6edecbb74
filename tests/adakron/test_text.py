import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from adakron import Backbone
from adakron.text import tokenise
from tests.tiny import WORDS, tiny_tokenizer

words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@given(first=words, second=st.none() | words, limit=st.integers(6, 40))
def test_truncation_is_that_of_the_library(family, first, second, limit):
    library = tiny_tokenizer(family)
    library.enable_truncation(limit, strategy="longest_first")
    expected = library.encode(first, second)
    text = first if second is None else (first, second)
    [(encoding, truncated)] = tokenise(tiny_tokenizer(family), [text], [limit])
    assert encoding.ids == expected.ids
    assert encoding.type_ids == expected.type_ids
    assert truncated == (len(tiny_tokenizer(family).encode(first, second).ids) > limit)


def test_each_text_has_its_own_limit():
    text = " ".join(WORDS[:20])
    (short, cut), (whole, uncut) = tokenise(tiny_tokenizer(), [text, text], [7, 40])
    assert (len(short.ids), cut) == (7, True)
    assert (len(whole.ids), uncut) == (22, False)


def test_a_text_is_tokenised_once_however_often_it_is_asked_for():
    seen = []

    class Counting:
        def __init__(self, tokenizer):
            self._tokenizer = tokenizer

        def __getattr__(self, name):
            return getattr(self._tokenizer, name)

        def encode_batch_fast(self, texts):
            seen.extend(texts)
            return self._tokenizer.encode_batch_fast(texts)

    texts = ["the hot word", ("the", "hot"), "the hot word", ("the", "hot"), "the hot word"]
    answers = tokenise(Counting(tiny_tokenizer()), texts, [9, 9, 4, 4, 9])
    assert seen == ["the hot word", ("the", "hot")]
    assert [(len(encoding.ids), cut) for encoding, cut in answers] == [
        (5, False),
        (5, False),
        (4, True),
        (4, True),
        (5, False),
    ]


def test_the_default_tokenizer_neither_pads_nor_cuts_by_itself():
    tokenizer = Tokenizer.from_str(Backbone.load().tokenizer.to_str())
    long = "word " * 300
    (one, _), (other, cut) = tokenise(tokenizer, ["word", long], [512, 512])
    assert len(one.ids) == 3
    assert (len(other.ids), cut) == (302, False)
