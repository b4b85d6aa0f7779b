import pytest
from markdown_it import MarkdownIt

from t2i.tools.model_card import code, plain


@pytest.mark.parametrize(
    "text",
    ["a | b", "*x* _y_ `z`", "<script>alert(1)</script>", "[a](http://b)", "![a](b)", "1 < 2", "a\\b", "~~a~~", "a\nb", "&lt;"],
)
def test_a_text_is_shown_as_it_is(text) -> None:
    table = f"| {plain(text)} |\n| --- |\n| {plain(text)} |\n"
    html = MarkdownIt("commonmark").enable("table").render(table)
    (head,) = [part.split("</th>")[0] for part in html.split("<th>")[1:]]
    shown = head.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    assert shown == " ".join(text.split())


@pytest.mark.parametrize("text", ["^conv_|^down|norm", "`a`", "a\nb"])
def test_a_value_is_one_code_span_in_a_cell(text) -> None:
    html = MarkdownIt("commonmark").enable("table").render(f"| a | b |\n| --- | --- |\n| {code(text)} | c |\n")
    assert f"<td><code>{' '.join(text.split()).replace('`', chr(39))}</code></td>\n<td>c</td>" in html
    assert code("") == ""
