"""What is asked of an index: the same as `index.attribute` says, also by many at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from app_rows import rows, talker, words
from tiny import plain_config

from lorif_hf import InfluenceIndex
from lorif_hf.app.query_files import FileQuery
from lorif_hf.app.questions import LONGEST_PROMPT, Choices, Questions
from lorif_hf.errors import ModelMismatchError, QueryError


PROMPTS = ["5 9 14", "30 2", "17 17 40 3", "8 1 6"]
FEW = Choices(top_k=4, opponents=3, max_new_tokens=4, fold_duplicates=False)


def asked(questions, prompt):
    said = questions.answer(prompt, 4).text
    return said, questions.attribute(prompt, said, FEW)


def test_a_question_is_answered_as_the_index_does(questions, index):
    said, result = asked(questions, "5 9 14")
    expected = index.attribute(talker(), ("5 9 14", said), 4, opponents=3)
    assert torch.equal(result.indices, expected.indices) and torch.equal(result.scores, expected.scores)
    assert torch.equal(result.opponent_indices, expected.opponent_indices)
    assert result.layer_scores


def test_a_text_is_attributed_as_it_stands(questions, index):
    result = questions.attribute("5 9 14 20", None, FEW)
    assert torch.equal(result.indices, index.attribute(talker(), "5 9 14 20", 4).indices)


def test_many_at_once_get_each_their_own_answer(questions):
    alone = [asked(questions, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: asked(questions, prompt), PROMPTS * 3))
    for (said, result), (expected, wanted) in zip(together, alone * 3, strict=True):
        assert said == expected and torch.equal(result.indices, wanted.indices)
        assert torch.equal(result.scores, wanted.scores)


def test_a_file_is_answered_query_by_query(questions):
    queries = [FileQuery("5 9 14"), FileQuery("30 2", " 7"), FileQuery("8 1 6 4", whole=True)]
    result = questions.attribute_file(queries, FEW)
    _, first = asked(questions, "5 9 14")
    assert len(result) == 3 and torch.equal(result.indices[0], first.indices[0])
    assert torch.equal(result.indices[1], questions.attribute("30 2", " 7", FEW).indices[0])
    assert torch.equal(result.indices[2], questions.attribute("8 1 6 4", None, FEW).indices[0])


def test_the_query_of_a_file_that_fails_is_named(questions):
    with pytest.raises(QueryError, match="Query 2 of the file: There is nothing to ask"):
        questions.attribute_file([FileQuery("5 9"), FileQuery("  ")], FEW)


@pytest.mark.parametrize(
    "prompt, message",
    [("", "nothing to ask: type a prompt"), (" \n", "nothing to ask"), ("5 " * LONGEST_PROMPT, "at most 20,000")],
    ids=["empty", "blank", "long"],
)
def test_a_prompt_that_is_none_is_refused(questions, prompt, message):
    with pytest.raises(QueryError, match=message):
        questions.answer(prompt)
    with pytest.raises(QueryError, match=message):
        questions.attribute(prompt, None, FEW)


def test_rows_come_by_their_self_influence(questions, index):
    order = index.self_influence().argsort(descending=True, stable=True).tolist()
    shown = questions.suspects(1, 10)
    assert [row["row"] for row in shown] == order[10:20] and [row["rank"] for row in shown] == list(range(11, 21))


def test_influence_is_summed_over_all_rows_by_an_owners_column(questions, index):
    assert questions.columns == ["source"]
    groups = questions.influence_by("5 9 14", " 20", "source")
    scores = index.scores(talker(), [("5 9 14", " 20")])[0]
    sums = {f"group {place}": float(scores[place::3].sum()) for place in range(3)}
    table = groups.to_pandas()
    shown = {name: float(table[name].iloc[0]) for name in sums}
    assert shown == pytest.approx(sums, rel=1e-4)


def test_choices_are_kept_within_bounds():
    assert Choices.within(1e9, -3, 1e9, 1, 0) == Choices(Choices.MOST, 0, Choices.LONGEST, True, False)
    assert Choices.within(0, 2.0, 0, False, True) == Choices(1, 2, 1, False, True)


def test_another_model_is_refused_at_once(index):
    with pytest.raises(ModelMismatchError, match="weights"):
        Questions(index, talker(seed=1))


def test_an_index_without_a_tokenizer_needs_one(tmp_path):
    index = InfluenceIndex.build(talker(), rows(6), tmp_path / "index", config=plain_config())
    with pytest.raises(QueryError, match="holds no tokenizer: pass processing_class="):
        Questions(index, talker())
    assert Questions(index, talker(), words()).answer("5 9", 2).text


def test_the_tokenizer_of_an_index_that_is_loaded_answers_in_its_own_process(index):
    loaded = InfluenceIndex.from_pretrained(index.path)
    asking = Questions(loaded, talker())
    assert asking.answer("5 9 14", 4) == Questions(index, talker()).answer("5 9 14", 4)
    assert "tokenizer_process" in type(loaded._asked_tokenizer).__module__
