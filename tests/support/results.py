"""Results as a large index gives them, with all that a page can show: facts, hostile texts, every script."""

import math
from dataclasses import replace
from typing import Any

import torch

from lorif_hf.reports.attribution import Attribution
from lorif_hf.reports.distribution import ScoreDistribution
from lorif_hf.reports.provenance import Provenance
from lorif_hf.reports.shading import Shading


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)></td></table></details>{{ 7 * 191 }} $x^2$ \\(y\\) "
    "\x1b[31mred\x1b]0;title\x07 \u202egnp.exe\u202c zero\u200bwidth \ud800 tag\U000e0041 \x00\x00\x00\x00 end"
)
SCRIPTS = (
    "Η Αθήνα είναι η πρωτεύουσα. عاصمة فرنسا هي باريس. בירת צרפת היא פריז. パリはフランスの首都です。 "
    "Париж — столица Франции. \U0001f1eb\U0001f1f7 \U0001f469\u200d\U0001f4bb"
)
PARAGRAPH = (
    "Paris is the capital and largest city of France. Since the 17th century, it has been a centre of finance, "
    "diplomacy, commerce, culture, fashion and gastronomy.\n\n    def capital(country):\n"
    "\treturn CAPITALS[country]\n\n"
)
TEXTS = [
    "Paris is the capital and largest city of France, on the river Seine.",
    "The capital of France is Paris, and the capital of Italy is Rome.",
    PARAGRAPH * 12,
    SCRIPTS,
    HOSTILE,
    "x" * 700,
    "The cathedral of Reims is where the kings of France were crowned, not in Paris.",
    "",
    "Lyon is the capital of the Auvergne-Rhône-Alpes region of France.",
]
QUERIES = [
    ("The capital of France is", " Paris"),
    ("Translate to Japanese: The capital of France is Paris.\n", "パリはフランスの首都です。"),
    ("", "Lambda expressions (sometimes called lambda forms) have the same syntactic position as expressions."),
    (HOSTILE, HOSTILE),
    (PARAGRAPH * 5, " So where do the trains from Lille arrive?"),
]
LAYERS = [
    f"transformer.h.{block}.{name}"
    for block in range(12)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
]


def plain_result(**fields: Any) -> Attribution:
    """Two queries and three rows, the first query and its first row hostile; no more than scores and texts."""
    rows = (1, 4, 7)
    examples = {row: {**_example(row, ["text"]), "text": HOSTILE if row == 4 else f"text {row}"} for row in rows}
    for example in examples.values():
        del example["source"], example["language"], example["toxicity"]
        example["example_id"] = f"id-{example['row']}"
    scores = torch.tensor([[3.0, 1.0, -2.0], [0.5, 0.25, 0.0]])
    held = {"queries": [HOSTILE, "second"], "losses": [2.0, 3.0], **fields}
    return Attribution(scores, torch.tensor([[4, 1, 7], [1, 7, 4]]), examples, **held)


def token_result() -> Attribution:
    """Two queries of two tokens and of one."""
    scores = torch.tensor([[[3.0, -1.0], [0.5, 0.25]], [[2.0, 1.0], [math.nan, math.nan]]])
    rows = torch.tensor([[[4, 1], [1, 7]], [[7, 4], [-1, -1]]])
    tokens = [[" Par", HOSTILE], [" is"]]
    return replace(plain_result(measure="log_prob", tokens=tokens), scores=scores, indices=rows)


def rich_result(
    queries: int = 5, k: int = 6, opponents: int = 2, texts: list[str] = TEXTS, seed: int = 0
) -> Attribution:
    """A result of so many queries with everything that a page shows.

    Args:
        queries (`int`): Q.
        k, opponents (`int`): rows of each, from 400 in all.
        texts (`list[str]`): those of the rows, in turn.
    """
    draw = torch.Generator().manual_seed(0)
    every = torch.randn(queries, 400, generator=draw) * 0.3
    every[torch.arange(queries), torch.arange(queries)] = 4.2  # the row of the query's number stands out
    every[torch.arange(queries), torch.arange(queries) + 1] = 1.6
    scores, indices = every.topk(k)
    low, last = every.topk(opponents, largest=False)
    rows = sorted({*indices.flatten().tolist(), *last.flatten().tolist()})
    asked = [QUERIES[query % len(QUERIES)] for query in range(queries)]
    pairs = [(query, row) for query in range(queries) for row in [*indices[query].tolist(), *last[query].tolist()]]
    layers = {pair: _parts(every[pair].item(), len(LAYERS), draw) for pair in pairs}
    answers = [completion.replace(" ", "\0 ").strip("\0").split("\0")[:12] for _, completion in asked]
    words = {row: texts[row % len(texts)].replace(" ", "\1 ").split("\1") for row in rows}
    return Attribution(
        scores,
        indices,
        {row: _example(row, texts) for row in rows},
        [prompt + completion for prompt, completion in asked],
        torch.rand(queries, generator=draw).tolist(),
        opponent_scores=low,
        opponent_indices=last,
        copies={int(indices[0, 0]): [17, 230], int(indices[0, 1]): [9]},
        layers=LAYERS,
        layer_scores=layers,
        shading=Shading(
            answers,
            {(query, row): _parts(every[query, row].item(), len(answers[query]), draw) for query, row in pairs},
            words,
            {(query, row): _parts(every[query, row].item(), len(words[row]), draw) for query, row in pairs},
        ),
        distribution=[_distribution(of_query) for of_query in every],
        prompts=[len(prompt) or None for prompt, _ in asked],
        provenance=Provenance(
            model="me/gpt2-capitals",
            repo_id="me/gpt2-capitals-index",
            commit="3f0c2d9b4e1a57c68d02b9f4a7e3c5d81f60a2b4",
            index="me/gpt2-capitals-index",
            num_examples=400,
            config={"rank": 4, "bits": 1, "whitening": "input_output", "damping": 0.1, "target_modules": "linear"},
            versions={"lorif-hf": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            date="2026-11-28T01:30:00Z",
        ),
    )


def _example(row: int, texts: list[str]) -> dict[str, Any]:
    return {
        "row": row,
        "example_id": f"wiki-{row}" if row % 3 else HOSTILE,
        "text": texts[row % len(texts)],
        "num_tokens": 40 + row,
        "loss": 0.5 + row / 100,
        "self_influence": 0.125 * (row + 1),
        "source": ["wikipedia", "news", "forum <b>"][row % 3],
        "language": ["en", "fr", "العربية", None][row % 4],
        "toxicity": 0.01234567 * row,
    }


def _parts(total: float, count: int, draw: torch.Generator) -> list[float]:
    """So many numbers that add up to a total, few of them large."""
    parts = torch.randn(count, generator=draw) ** 3 * abs(total) / max(count, 1) / 3
    return (parts + (total - parts.sum()) / max(count, 1)).tolist()


def _distribution(scores: torch.Tensor, bins: int = 64) -> ScoreDistribution:
    low, high = scores.min().item(), scores.max().item()
    counts = torch.histc(scores, bins, low, high).int().tolist()
    edges = [low + (high - low) * place / bins for place in range(bins + 1)]
    deviation = math.sqrt(scores.double().var(correction=0).item())
    return ScoreDistribution(len(scores), scores.double().mean().item(), deviation, edges, counts)
