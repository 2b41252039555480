"""The tokeniser's rules: what is split, and that joining is exact."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnnas.data.tokenizer import detokenize, tokenize
from rnnnas.data.vocab import EOS, UNK

CASES = {
    '"Well-known," she said:': '"￭ Well ￭-￭ known ￭, ￭" she said ￭:',
    "Anna's 1,234.5 e.g. in the U.S. don't... end.": (
        "Anna ￭'s 1,234.5 e.g. in the U.S. don ￭'t ￭... end ￭."
    ),
    "l'homme d’ici": "l'￭ homme d’￭ ici",
    "Grüße, „Füße“!": "Grüße ￭, „￭ Füße ￭“ ￭!",
    "हिन्दी में, और।": "हिन्दी में ￭, और ￭।",
    "今天，天气很好。": "今天 ￭，￭ 天气很好 ￭。",
    "مرحبا، كيف حالك؟": "مرحبا ￭، كيف حالك ￭؟",
    f"{EOS} {UNK} a_b": "<￭ eos ￭> <￭ unk ￭> a_b",
    "￭ a￭b ￬0": "￬1 a ￭￬1￭ b ￬0￭ 0",
}


@pytest.mark.parametrize("line", CASES)
def test_what_is_split(line: str) -> None:
    assert " ".join(tokenize(line)) == CASES[line]


@settings(max_examples=300, deadline=None)
@given(
    st.text(
        st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("ab1.,-'\"￭￬0 1<>_"))
    )
)
def test_joining_is_exact_but_for_white_space(line: str) -> None:
    tokens = tokenize(line)
    assert detokenize(tokens) == " ".join(line.split())
    assert all(len(token.split()) == 1 and token == token.strip() for token in tokens)
    assert not {EOS, UNK} & set(tokens)
