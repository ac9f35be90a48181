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
    assert repr(result) == "Attribution(queries=2, top_k=3)"


def test_rows_come_ranked_and_joined(result):
    rows = result.to_list()
    assert [(row["query"], row["rank"], row["row"], row["score"]) for row in rows[:4]] == [
        (0, 1, 4, 3.0),
        (0, 2, 1, 1.0),
        (0, 3, 7, -2.0),
        (1, 1, 1, 0.5),
    ]
    assert rows[0]["example_id"] == "id-4"


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
