"""`docs/streams-and-checkpoints.md` is one script, and what it makes is what it says."""

import re
from pathlib import Path

import torch
from checkpointed import collate
from tiny import make_gpt2, make_rows

from lorif_hf import InfluenceEnsemble


PAGE = Path(__file__).resolve().parents[2] / "docs" / "streams-and-checkpoints.md"


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    query = [{"input_ids": [3, 4, 5, 6]}]
    names = {"make_model": make_gpt2, "rows": make_rows(16), "collate": collate, "query": query}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    ids = [example["example_id"] for example in names["index"].examples(list(range(12)))]
    assert ids == [row["example_id"] for row in names["stream"].take(12)]
    ensemble = names["ensemble"]
    assert isinstance(ensemble, InfluenceEnsemble) and ensemble.steps == [2, 4, 6]
    assert names["result"].indices.tolist() == names["scores"].topk(3).indices.tolist()
    torch.testing.assert_close(names["result"].scores, names["scores"].topk(3).values)
