"""The colours of .net code on the site."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT

if find_spec("markdown") is None:
    pytest.skip("the lexer needs Markdown, which zensical brings", allow_module_level=True)

from pygments.token import Comment, Error, Keyword, Name, Number, String

from docs.tools.net_lexer import KEYWORDS, NetLexer

FILES = sorted((ROOT / "models").rglob("*.net"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_character_of_the_models_has_a_token(path: Path) -> None:
    text = path.read_text()
    tokens = list(NetLexer().get_tokens(text))
    assert "".join(value for _, value in tokens).strip() == text.strip()
    assert Error not in {kind for kind, _ in tokens}


def test_words_have_their_kinds() -> None:
    text = (
        'net a(n=2) { conv1: conv(n, 3x3) -> relu if n == 2 } # b\ndata { source = images("c") }\n'
    )
    kinds = {value: kind for kind, value in NetLexer().get_tokens(text)}
    assert {"net", "data", "for", "if"} <= {*KEYWORDS}
    assert (kinds["net"], kinds["if"], kinds["data"]) == (Keyword, Keyword, Keyword)
    assert {kinds[name] for name in ("a", "conv", "relu", "images")} == {Name.Function}
    assert (kinds["conv1"], kinds["source"], kinds["3x3"]) == (Name.Label, Name.Attribute, Number)
    assert (kinds["# b"], kinds['"c"']) == (Comment.Single, String)
