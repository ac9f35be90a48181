"""What a person looks at: tables, pages and plots, with every text escaped."""

import pytest
import torch

from lorif_hf import Attribution


HOSTILE = '<script>alert("x")</script> & $x^2$ {{ 7 * 7 }} \'"'


@pytest.fixture
def result():
    examples = {
        row: {
            "row": row,
            "example_id": f"id-{row}",
            "text": HOSTILE if row == 4 else f"text {row}",
            "num_tokens": 3,
            "loss": 1.5,
            "self_influence": 0.25,
        }
        for row in (1, 4, 7)
    }
    scores = torch.tensor([[3.0, 1.0, -2.0], [0.5, 0.25, 0.0]])
    return Attribution(scores, torch.tensor([[4, 1, 7], [1, 7, 4]]), examples, [HOSTILE, "second"], [2.0, 3.0])


def test_one_query_of_several(result):
    assert len(result) == 2
    second = result[1]
    assert len(second) == 1 and second.scores.shape == (1, 3) and second.queries == ["second"]
    assert torch.equal(result[-1].indices, second.indices)
    assert [one.queries[0] for one in result] == [HOSTILE, "second"]
    with pytest.raises(IndexError):
        result[2]
    with pytest.raises(TypeError, match="takes the number of a query or a slice, got 'a'"):
        result["a"]
    assert [part.queries for part in (result[::-1], result[:0], result[-5:1])] == [["second", HOSTILE], [], [HOSTILE]]
    assert result[::-1].indices.tolist() == [[1, 7, 4], [4, 1, 7]] and result[:0].scores.shape == (0, 3)


def test_rows_come_ranked_and_joined(result):
    rows = result.to_list()
    assert [(row["query_id"], row["rank"], row["row"], row["score"]) for row in rows[:4]] == [
        (0, 1, 4, 3.0),
        (0, 2, 1, 1.0),
        (0, 3, 7, -2.0),
        (1, 1, 1, 0.5),
    ]
    assert rows[0]["example_id"] == "id-4" and rows[0]["query"] == HOSTILE
    assert list(rows[0]) == [
        *("query", "rank", "score", "text", "row", "example_id", "num_tokens", "loss", "self_influence", "query_id")
    ]


def test_tables_hold_what_the_list_holds(result):
    assert result.to_pandas().to_dict("records") == result.to_list()
    assert result.to_dataset().to_list() == result.to_list()


@pytest.mark.parametrize("kind", ["page", "notebook"])
def test_text_is_escaped(result, tmp_path, kind):
    result.save_html(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text() if kind == "page" else result._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in html
    assert "{{ 7 * 7 }}" in html
    assert "+3" in html and "-2" in html and "id-4" in html


def test_the_page_loads_nothing(result, tmp_path):
    result.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "src=" not in page and "href=" not in page


def test_examples_without_text_or_id_are_shown(result):
    for example in result.examples.values():
        example["text"] = example["example_id"] = None
    assert "None" not in result._repr_html_()


def test_the_plot_has_a_panel_per_query_and_a_bar_per_row(result):
    figure = result.plot()
    assert len(figure.axes) == 2
    assert [bar.get_width() for bar in figure.axes[0].patches] == [3.0, 1.0, -2.0]
    figure.canvas.draw()  # hostile text must not be read as a formula


@pytest.fixture
def by_token(result):
    """Two queries of two tokens and of one."""
    nan = float("nan")
    scores = torch.tensor([[[3.0, -1.0], [0.5, 0.25]], [[2.0, 1.0], [nan, nan]]])
    rows = torch.tensor([[[4, 1], [1, 7]], [[7, 4], [-1, -1]]])
    tokens = [[" Par", HOSTILE], [" is"]]
    return Attribution(scores, rows, result.examples, result.queries, [2.0, 3.0], measure="log_prob", tokens=tokens)


def test_rows_of_tokens_name_their_token(by_token):
    rows = by_token.to_list()
    assert [(r["query_id"], r["token"], r["token_text"], r["rank"], r["row"], r["score"]) for r in rows] == [
        (0, 0, " Par", 1, 4, 3.0),
        (0, 0, " Par", 2, 1, -1.0),
        (0, 1, HOSTILE, 1, 1, 0.5),
        (0, 1, HOSTILE, 2, 7, 0.25),
        (1, 0, " is", 1, 7, 2.0),
        (1, 0, " is", 2, 4, 1.0),
    ]
    assert by_token.to_pandas().to_dict("records") == rows == by_token.to_dataset().to_list()
    assert [row["token_text"] for row in by_token[1].to_list()] == [" is", " is"]
    assert by_token[0].tokens == [[" Par", HOSTILE]] and by_token[0].measure == "log_prob"


def test_the_page_shows_each_token_with_its_rows(by_token, tmp_path):
    by_token.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<details") == page.count("</details>") == 3 and page.count("<table>") == 3
    assert page.count("<details open>") == 1  # of the query with a single token
    assert '<span class="token"> Par</span>' in page and "<script" not in page and "nan" not in page
    assert "Query log-probability -2.000 nats" in page and "raises the query&#39;s log-probability" in page
    assert by_token._repr_html_().count("<tr>") == 3 + 6


@pytest.mark.parametrize(
    "measure, shown",
    [
        ("loss", "Query loss 2.000 nats. "),
        ("margin", "Query margin -2.000 nats. "),
        ("reward", "Query reward -2.000. "),
        ("difference", "Query log-probability or reward of the chosen less that of the rejected completion -2.000"),
    ],
)
def test_the_page_says_what_was_measured(result, measure, shown):
    result.measure = measure
    assert shown in result._repr_html_()


def test_the_plot_has_a_panel_per_token(by_token):
    figure = by_token.plot()
    assert [len(axes.patches) for axes in figure.axes] == [2, 2, 2]
    assert figure.axes[0].get_title(loc="left").startswith("0: 'Par' of <script>")
    figure.canvas.draw()
