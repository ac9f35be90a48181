"""The page of a result and its table in a notebook, as HTML; what a browser makes of them is in test_chromium."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from results import HOSTILE, TEXTS, plain_result, rich_result, token_result

from lorif_hf.reports.provenance import Provenance


VOID = {"meta", "path", "br", "link"}


class Reader(HTMLParser):
    """Elements and texts of a page; notes what is not closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts, self.wrong = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def of(self, tag, kind=None):
        return [
            at for name, at in self.elements if name == tag and (kind is None or kind in at.get("class", "").split())
        ]

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts))


def saved(result, tmp_path):
    result.save_html(tmp_path / "page.html")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rich():
    return rich_result()


@pytest.mark.parametrize("make", [plain_result, token_result, rich_result])
@pytest.mark.parametrize("alone", [True, False], ids=["page", "notebook"])
def test_every_element_is_closed_and_every_text_escaped(make, alone, tmp_path):
    result = make()
    html = saved(result, tmp_path) if alone else result._repr_html_()
    read = Reader(html)
    assert not read.wrong and not read.open
    assert not {tag for tag, _ in read.elements} & {"script", "img", "iframe", "object", "link", "base", "form"}
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script><img src=x onerror=alert(2)></td></table></details>{{ 7 * 191 }}" in read.text
    assert "1337" not in html and not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\ud800]", html)
    assert "U+202E" in html and "U+001B" in html


def test_the_page_loads_nothing_and_links_to_the_hub_alone(rich, tmp_path):
    html = saved(rich, tmp_path)
    read = Reader(html)
    policy = next(at["content"] for at in read.of("meta") if at.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert (
        not [at for _, at in read.elements if "src" in at or "srcset" in at]
        and "url(" not in html
        and "@import" not in html
    )
    links = {at["href"] for at in read.of("a") if not at["href"].startswith("#")}
    repo = "https://huggingface.co/datasets/me/gpt2-capitals-index"
    row = int(rich.indices[0, 0])
    assert repo in links and f"{repo}/viewer/default/train?row={row}" in links
    assert {link for link in links if not link.startswith(repo)} == set()


@pytest.mark.parametrize(
    "repo_id", ["me", "../x/y", 'me/x" onclick="alert(1)', "javascript:alert(1)/x", "me/ünïcode", "a/b/c", ".a/b", ""]
)
def test_what_is_no_repo_is_no_link(repo_id):
    html = plain_result(provenance=Provenance(repo_id=repo_id))._repr_html_()
    assert "href=" not in html and "<b>4</b>" in html


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(rich, tmp_path):
    read = Reader(saved(rich, tmp_path))
    ids = [at["id"] for _, at in read.elements if "id" in at]
    assert len(ids) == len(set(ids))
    wanted = {at["href"][1:] for at in read.of("a") if at["href"].startswith("#")}
    wanted |= {at["aria-labelledby"] for _, at in read.elements if "aria-labelledby" in at}
    assert wanted <= set(ids) and {"q1", "q5"} <= wanted
    assert not [at for _, at in Reader(rich._repr_html_()).elements if "id" in at]  # a notebook may show two


def test_a_reader_of_the_screen_gets_landmarks_headings_and_tables(rich, tmp_path):
    read = Reader(saved(rich, tmp_path))
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert len(read.of(tag)) == 1, tag
    assert len(read.of("section")) == 6 and len(read.of("h2")) == 7 and len(read.of("h3")) == 10
    assert len(read.of("table", "lf-rows")) == len([at for at in read.of("table") if "aria-label" in at]) == 10
    assert {at["scope"] for at in read.of("th")} == {"col", "row"}
    assert all((at.get("role") == "img" and at["aria-label"]) or at["aria-hidden"] == "true" for at in read.of("svg"))


def test_prompt_and_completion_are_told_apart(rich):
    html = rich._repr_html_()
    assert "<span class=lf-prompt>The capital of France is </span><span class=lf-completion>Paris</span>" in html
    assert '<div class="lf-text lf-asked" dir=auto>Lambda expressions' in html  # measured whole


def test_a_row_has_its_facts(rich):
    text = Reader(rich[0]._repr_html_()).text
    row = int(rich.indices[0, 1])
    example = rich.examples[row]
    for fact in (f"row {row}", f"loss {example['loss']:.4g}", f"self-influence {example['self_influence']:.3g}"):
        assert fact in text
    assert f"source {example['source']}" in text and f"toxicity {example['toxicity']:.4g}" in text
    assert "×3 near-duplicates: also rows 17, 230" in text and "×2 near-duplicates: also row 9" in text


def test_proponents_and_opponents_stand_apart_with_their_ranks(rich):
    text = Reader(rich[0]._repr_html_()).text
    top, bottom = (
        text.index("Proponents training on them more lowers"),
        text.index("Opponents training on them more raises"),
    )
    assert top < text.index(" 1 +4.2") < bottom < text.index(" 400 -") < text.index(" 399 -")


def test_opponents_alone_are_called_so():
    result = plain_result()
    result.scores = -result.scores.abs()
    read = Reader(result._repr_html_())
    assert (
        "Opponents" in read.text and "Proponents" not in read.text and len(read.of("tr", "lf-less")) == 5
    )  # and a zero


def test_the_first_row_is_compared_with_chance(rich):
    text = Reader(rich[0]._repr_html_()).text
    z = rich.distribution[0].z(rich.scores[0, 0].item())
    assert f"The first row stands {z:.1f} standard deviations above the mean of all 400 rows" in text
    assert "the farthest would stand at about 3.0" in text and f"{z:+.1f} sd" in text


def test_layers_are_drawn_and_the_largest_named(rich):
    row = int(rich.indices[0, 0])
    scores = rich.layer_scores[0, row]
    largest = max(range(len(scores)), key=lambda place: abs(scores[place]))
    read = Reader(rich[0]._repr_html_())
    assert f"{rich.layers[largest]} {100 * abs(scores[largest]) / sum(map(abs, scores)):.0f} %" in read.text
    assert len(read.of("svg", "lf-strip")) == 8


def test_tokens_are_shaded_by_their_shares():
    result = rich_result(queries=1, texts=["a b c d"])
    row = int(result.indices[0, 0])
    result.shading.row_shares[0, row][:] = [1.0, -1.0, 0.0, 0.5]
    assert "<span class=lf-p4>a</span><span class=lf-n4> b</span> c<span class=lf-p2> d</span>" in result._repr_html_()


def test_each_token_of_an_answer_has_its_rows(tmp_path):
    read = Reader(saved(token_result(), tmp_path))
    assert len(read.of("table")) == 3 and len(read.of("span", "lf-token")) == 3
    assert len([at for at in read.of("details") if "open" in at]) == 1  # of the query with a single token
    assert " Par +3 row 4" in read.text and "nan" not in read.text
    assert "log-probability -2.000 nats" in read.text and "raises the query's log-probability" in read.text


@pytest.mark.parametrize(
    "measure, shown",
    [
        ("loss", "loss 2.000 nats"),
        ("margin", "margin -2.000 nats"),
        ("reward", "reward -2.000 "),
        ("difference", "log-probability or reward of the chosen less that of the rejected completion -2.000 nats"),
        ("surprise", "surprise -2.000 nats"),
    ],
)
def test_the_page_says_what_was_measured(measure, shown):
    assert shown in Reader(plain_result(measure=measure)._repr_html_()).text


def test_what_is_not_known_is_left_out(tmp_path):
    result = plain_result()
    for example in result.examples.values():
        example["text"] = example["example_id"] = None
    text = Reader(saved(result, tmp_path)).text
    assert (
        "None" not in text and "id " not in text.replace("Skip to", "") and "sd" not in text and "Commit" not in text
    )


def test_packed_documents_name_their_place():
    result = plain_result()
    result.examples[4].update(source_row=2, start=10, stop=35, document=None)
    result.examples[1]["pieces"] = [1, 2]
    text = Reader(result._repr_html_()).text
    assert "tokens 10 to 35 of packed row 2" in text and "pieces: rows 1, 2" in text and "document" not in text


def test_the_foot_says_where_the_answer_is_from(rich, tmp_path):
    text = Reader(saved(rich, tmp_path)).text
    foot = text[text.rindex("Modelme/gpt2-capitals") :]
    for part in ("me/gpt2-capitals-index at 3f0c2d9b4e1a57c68d02b9f4a7e3c5d81f60a2b4", "rank=4", "torch 2.13.0"):
        assert part in foot
    assert "Date2026-11-28T01:30:00Z" in foot


def test_long_texts_fold_and_very_long_ones_are_cut(tmp_path):
    result = plain_result()
    result.examples[1]["text"] = "word " * 200
    result.examples[7]["text"] = "word " * 20_000
    read = Reader(saved(result, tmp_path))
    assert "1,000 characters: " in read.text and "100,000 characters: " in read.text
    assert "of 100,000 characters." in read.text and "of 1,000 characters." not in read.text


@pytest.mark.parametrize("text", [TEXTS[2] * 10, HOSTILE * 100, "首都" * 5000, "\u202e\u202d" * 3000, "<&\"'>" * 3000])
def test_ten_queries_of_twenty_rows_take_less_than_a_megabyte(tmp_path, text):
    result = rich_result(queries=10, k=17, opponents=3, texts=[text, "short"])
    result.save_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 1_000_000


def test_a_notebook_keeps_twenty_queries_and_says_how_to_see_the_others():
    result = plain_result()
    many = replace(
        result,
        scores=result.scores[:1].expand(23, -1),
        indices=result.indices[:1].expand(23, -1),
        queries=[f"query {number}" for number in range(23)],
        losses=[1.0] * 23,
    )
    read = Reader(many._repr_html_())
    assert len(read.of("section")) == 20 and "3 more queries: result[20:]" in read.text


def test_a_result_without_queries_or_rows_is_a_page(tmp_path):
    empty = replace(plain_result(), scores=torch.empty(0, 3), indices=torch.empty(0, 3).long(), queries=[], losses=[])
    assert not Reader(saved(empty, tmp_path)).of("section")
    without = replace(plain_result(), scores=torch.empty(2, 0), indices=torch.empty(2, 0).long())
    assert not Reader(saved(without, tmp_path)).of("table")


def test_the_same_result_gives_the_same_bytes(tmp_path):
    assert rich_result()._repr_html_() == rich_result()._repr_html_()
