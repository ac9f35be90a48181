"""LoRA on packed chats, at a small size: each chat is a row of the index, and the fact's own chats come first."""

import packed_lora_sft
import pytest


@pytest.mark.slow
def test_the_chats_behind_an_answer_are_named(tmp_path, capsys):
    figures = packed_lora_sft.run(tmp_path, count=30, prose=60, epochs=40, asked=6)
    assert "60 chats in" in capsys.readouterr().out
    right = [figure for figure in figures if figure["right"]]
    assert len(right) >= 3
    assert sum(figure["ranks"][:1] == [1] for figure in right) >= 0.6 * len(right)
    for figure in figures:
        first = figure["named"][0]
        assert 0 <= first["start"] < first["stop"] <= packed_lora_sft.PACKED
    assert (tmp_path / "packed-lora-sft.png").stat().st_size < 150_000 and (tmp_path / "answers.html").is_file()


def test_the_facts_are_pythons_own():
    facts = {name: meaning for _, name, meaning in packed_lora_sft.facts()}
    assert facts["404"] == "Not Found" and facts["ENOENT"] == "No such file or directory"
