"""The tables and the plot of what benchmarks.quality measured: RESULTS.md, its picture, and the README's table.

python -m benchmarks.report
"""

import json
import re
from pathlib import Path
from typing import Any

from .quality import RESULTS


HERE = Path(__file__).parent
TITLES = {
    "wikitext": "(a) A small GPT-2 fine-tuned on WikiText-2",
    "mislabeled": "(b) A text classifier, 10% of whose labels are flipped",
}
SHOWN = (
    "TRAK, p = 2048",
    "LoGRA, f = 16",
    "LoGRA, f = 8",
    "LoGRA, f = 4",
    "LoRIF as published, c = 1",
    "LoRIF as published, c = 4",
    "smallest()",
    "default",
    "best()",
    "BM25",
    "EK-FAC (kronfluence)",
)
BEGIN, END = "<!-- benchmarks.report: begin -->", "<!-- benchmarks.report: end -->"


def table(results: dict[str, Any], names: list[str] | None = None) -> str:
    """One line per index, fewest bytes first; references that store nothing at the end."""
    rows = results["rows"]
    paper = rows["LoRIF as published, c = 1"]
    detected = any("mislabel_auroc" in row for row in rows.values())
    head = ["index", "bytes per example", "LDS (95% over queries)", "LDS to LoRIF's"]
    head += ["AUROC of flipped labels"] if detected else []
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---", *["---:"] * (len(head) - 1)]) + " |"]
    chosen = [name for name in (names or rows) if name in rows]
    for name in sorted(chosen, key=lambda name: (rows[name]["bytes"] is None, rows[name]["bytes"] or 0)):
        row = rows[name]
        cells = [
            f"**{name}**" if name in ("default", "smallest()", "best()") else name,
            "-" if row["bytes"] is None else f"{row['bytes']:,.0f}",
            f"{row['lds']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
            f"{row['lds'] / paper['lds']:.1f}",
        ]
        if detected:
            cells.append(f"{row['mislabel_auroc']:.3f}" if "mislabel_auroc" in row else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: dict[str, Any], title: str, path: Path) -> None:
    """LDS against bytes per example, bytes on a log axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    groups = {
        "ours, whitened": lambda name: name.startswith("whitened"),
        "LoGRA": lambda name: re.fullmatch(r"LoGRA, f = \d+", name),
        "LoRIF as published": lambda name: re.fullmatch(r"LoRIF as published, c = \d+", name),
        "TRAK": lambda name: name.startswith("TRAK"),
        "ours: smallest(), default, best()": lambda name: name in ("smallest()", "default", "best()"),
    }
    for (label, belongs), marker in zip(groups.items(), ("o", "s", "D", "^", "*"), strict=True):
        rows = sorted((row["bytes"], row["lds"]) for name, row in results["rows"].items() if belongs(name))
        if rows:
            line = "-" if label in ("LoGRA", "LoRIF as published") else ""
            size = 16 if marker == "*" else 7
            axes.plot(*zip(*rows, strict=True), line + marker, label=label, markersize=size, alpha=0.8)
    for name, style in (("EK-FAC (kronfluence)", "--"), ("BM25", ":")):
        row = results["rows"].get(name)
        if row:
            axes.axhline(row["lds"], linestyle=style, color="grey", label=f"{name}, nothing stored")
    axes.set_xscale("log")
    axes.set_xlabel("bytes per example (log)")
    axes.set_ylabel("LDS (higher predicts retraining better)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parts = [
        "# Results",
        "Written by `python -m benchmarks.report` from what `python -m benchmarks.quality` measured. LDS: mean over "
        "queries of the Spearman correlation between the sum of a subset's scores and minus the loss of the model "
        "that was retrained on it (Park et al. 2023); the interval is a bootstrap over queries. Bytes: what is stored "
        "of an example in all layers, scales included, file headers not.",
    ]
    for bed, title in TITLES.items():
        path = RESULTS / f"{bed}.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        plot(results, title, HERE / f"{bed}.png")
        parts += [
            f"## {title}",
            f"{results['examples']:,} examples, {results['queries']} queries, {results['subsets']} half-subsets "
            f"retrained with {results['seeds']} seeds each; two seeds agree with {results['seed_agreement']:.2f}. "
            f"{results['machine']}.",
            table(results),
            f"![{title}: LDS against bytes per example]({bed}.png)",
        ]
        if bed == "wikitext":
            readme = HERE.parent / "README.md"
            section = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
            before, after = section.split(readme.read_text())
            readme.write_text(f"{before}{BEGIN}\n{table(results, list(SHOWN))}\n{END}{after}")
    (HERE / "RESULTS.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
