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
    "lora": "(c) LoRA adapters of rank 8 on a small Llama",
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
ABOUT = {
    "lora": " `python -m benchmarks.quality lora --subsets 40 --processes 1`, then `python -m benchmarks.lora_others`."
    " Queries and rows are of the same few articles. Bytes of dattri-llm and bergson are those of the gradients that "
    "their stores hold in float32; dattri-llm keeps each token's inputs and output gradients, and scores without a "
    "store too. `dot` of both ranks as our gradient dot product at f = 1 does (Spearman 1.000).",
}
BEGIN, END = "<!-- benchmarks.report: begin -->", "<!-- benchmarks.report: end -->"


def table(results: dict[str, Any], names: list[str] | None = None) -> str:
    """One line per index, fewest bytes first; references that store nothing at the end."""
    rows = results["rows"]
    paper = rows["LoRIF as published, c = 1"]
    detected = any("mislabel_auroc" in row for row in rows.values())
    head = ["index", "bytes per example", "LDS (95% over queries)", "LDS to LoRIF's"]
    head += ["AUROC of flipped labels"] if detected else []
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---", *["---:"] * (len(head) - 1)]) + " |"]
    chosen = [name for name in (names or rows) if name in rows and "lds" in rows[name]]
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
    failed = [f"{name}: {row['error']}" for name, row in rows.items() if "error" in row]
    return "\n".join([*lines, *(["", "Did not run: " + "; ".join(failed) + "."] if failed else [])])


def plot(results: dict[str, Any], title: str, path: Path) -> None:
    """LDS against bytes per example, bytes on a log axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    groups = {
        "ours, whitened": lambda name: name.startswith("whitened"),
        "ours, not whitened": lambda name: name.startswith("not whitened"),
        "dattri-llm": lambda name: name.startswith("dattri-llm"),
        "bergson": lambda name: name.startswith("bergson"),
        "LoGRA": lambda name: re.fullmatch(r"LoGRA, f = \d+", name),
        "LoRIF as published": lambda name: re.fullmatch(r"LoRIF as published, c = \d+", name),
        "TRAK": lambda name: name.startswith("TRAK"),
        "ours: smallest(), default, best()": lambda name: name in ("smallest()", "default", "best()"),
    }
    for (label, belongs), marker in zip(groups.items(), "oPXdsD^*", strict=True):
        rows = sorted(
            (row["bytes"], row["lds"]) for name, row in results["rows"].items() if belongs(name) and "lds" in row
        )
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


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table; all columns but the first stand on the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def speed() -> list[str]:
    """What the benchmarks of cost measured, and the check of LDS against a direct computation."""
    parts = []
    for name, (title, rows_of) in SPEED.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            results = json.loads(path.read_text())
            parts += [
                f"## {title}",
                f"`python -m benchmarks.{COMMANDS.get(name, name)}`. {results['machine']}{_under(results)}."
                + (NOTES[name](results) if name in NOTES else ""),
                markdown(*rows_of(results)),
            ]
    return parts


def _under(results: dict[str, Any]) -> str:
    """The load, where it was noted."""
    return f", {results['load']} processes wanted a core" if "load" in results else ""


def _direct(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [name, f"{row['lds']:.4f}", f"{row['direct']:.4f}", f"{row['difference']:+.4f}", f"{row['spearman']:.5f}"]
        for name, row in results["rows"].items()
    ]
    return ["index", "LDS", "LDS, computed directly", "difference", "Spearman of the scores"], rows


def _recording(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            f"{row['model']}, {row['config']}",
            f"{row['examples_per_second']:.1f}",
            f"{row['ratio_to_plain']:.2f}",
            f"{row['moments_seconds']:.1f}",
            f"{row['peak_memory'] / 2**30:.2f}",
        ]
        for row in results["rows"]
    ]
    head = [
        "model, config",
        "examples/s",
        "to plain forward + backward",
        "second moments, s (once)",
        "process peak, GiB",
    ]
    return head, rows


def _curvature(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for case in results["cases"].values():
        size = f"N = {case['count']:,}, D = {case['d1'] * case['d2']:,}, r = {case['rank']:,}, {case['repeats']} runs"
        for method, row in case["rows"].items():
            best = row["energy_to_best"]
            rows.append(
                [
                    f"{size}, {method}",
                    f"{row['seconds']:.1f}",
                    f"{row['published_to_this']:.1f}",
                    f"{row['energy']:.4f}",
                    "-" if best is None else f"{best:.4f}",
                    f"{row['score_correlation']:.4f}",
                    f"{row['peak_bytes'] / 1e6:,.0f}",
                ]
            )
    head = ["layer, method", "s", "published / this", "energy of the trace", "of the best", "score correlation"]
    return [*head, "peak, MB"], rows


def _query(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for row in results["rows"]:
        ratios = [f"{row[name]:,.1f}" if name in row else "-" for name in ("to_published", "to_dense")]
        size = [f"{row['examples']:,}", str(row["queries"]), f"{row['seconds']:.3f}", f"{row['to_reading']:.2f}"]
        rows.append([row["index"], *size, *ratios])
    head = ["index, queries", "N", "Q", "s", "to reading", "published / ours", "LoGRA / ours"]
    for count, peaks in results["memory"].items():
        own = f"peak {peaks['RssAnon'] / 2**20:,.0f} MiB of its own, {peaks['RssFile'] / 2**20:,.0f} MiB mapped"
        rows.append([own, f"{int(count):,}", "8", *["-"] * (len(head) - 3)])
    return head, rows


def _end_to_end(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, row in results["rows"].items():
        label = f"{name} ({row['version']})" if "version" in row else name
        if "error" in row:
            rows.append([f"{label}: {row['error']}", *["-"] * 7])
            continue
        each = row.get("bytes_per_example")
        cells = [label, f"{row['bytes'] / 1e6:,.2f}" if row["bytes"] else "-", f"{each:,.0f}" if each else "-"]
        cells += [f"{row['build_seconds']:.1f}", f"{row['query_seconds']:.3f}", f"{row['one_query_seconds']:.3f}"]
        cells += [f"{row['query_peak_memory'] / 2**20:,.0f}", f"{row['spearman']:.3f}" if "spearman" in row else "-"]
        rows.append(cells)
    head = ["system", "disk, MB", "bytes per row", "build, s", f"{results['bed']['queries']} queries, s", "1 query, s"]
    return [*head, "query peak, MiB", "Spearman with EK-FAC"], rows


def _preferences(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    trainings = list(results["trainings"].values())
    rows = []
    for name, row in trainings[0]["rows"].items():
        found = [_least_and_mean([each["rows"][name][key] for each in trainings]) for key in _FOUND_BY]
        rows.append([name, f"{row['bytes']:,.0f}", *found])
    rows.append(["loss alone, no index", "-", _least_and_mean([each["loss"] for each in trainings]), "-"])
    head = [f"index, {len(trainings)} trainings", "bytes per pair", "AUROC, self-influence: mean (least)"]
    return [*head, "AUROC, clean queries: mean (least)"], rows


def _minilm(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, row in results["rows"].items():
        score = f"{row['lds']:.3f} ({row['low']:.3f} to {row['high']:.3f})" if "lds" in row else "-"
        rows.append([name, f"{row['bytes']:,.0f}", *(f"{row[key]:.3f}" for key in _FOUND_BY), score])
    rows.append(["loss alone, no index", "-", f"{results['rows']['default']['loss']:.3f}", "-", "-"])
    head = ["index", "bytes per example", "AUROC, self-influence", "AUROC, clean queries", "LDS (95% over queries)"]
    return head, rows


_FOUND_BY = ("self_influence", "clean_queries")


def _least_and_mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f} ({min(values):.3f})"


COMMANDS = {
    "query": "query --max-examples 1000000",
    "end_to_end_8000": "end_to_end --examples 8000 --only plain,ours-default-f,dattri-disk --results "
    "benchmarks/results/end_to_end_8000.json",
}
SPEED = {
    "direct": ("LoGRA and LoRIF beside a direct computation", _direct),
    "recording": ("Recording", _recording),
    "curvature": ("Curvature", _curvature),
    "query": ("Queries", _query),
    "preferences": ("Flipped preference pairs of a DPO training with LoRA", _preferences),
    "minilm": ("all-MiniLM-L6-v2 as a classifier, 10% of whose labels are flipped", _minilm),
    "end_to_end": ("2,000 rows and 100 queries, beside other systems", _end_to_end),
    "end_to_end_8000": ("8,000 rows and 100 queries, beside dattri", _end_to_end),
}


def _about_preferences(results: dict[str, Any]) -> str:
    trainings = list(results["trainings"].values())
    seconds = sum(each["seconds"] for each in trainings) / len(trainings)
    return (
        f" {results['pairs']} pairs, {results['flipped']} of them flipped, {results['epochs']} epochs of DPO with "
        f"LoRA, {results['queries']} clean pairs as queries; {len(trainings)} trainings, each with pairs, flips and "
        f"adapters of its own, of {seconds:.0f} s with all their indices. "
        f"{trainings[0]['rows']['default']['coverage']:.0%} of the trained parameters are tracked."
    )


def _about_minilm(results: dict[str, Any]) -> str:
    reasons = "; ".join(f"{size:,} numbers: {reason}" for reason, size in results["untracked"].items())
    bank = ""
    if "subsets" in results:
        bank = f" LDS: {results['subsets']} half-subsets, {results['seeds']} training(s) each."
    return (
        f" {results['examples']} snippets, {results['flipped']} with a wrong label, {results['queries']} clean "
        f"queries; accuracy {results['accuracy']:.2f} on others. Training {results['training_seconds']:.0f} s, index "
        f"{results['index_seconds']:.0f} s. {results['coverage']:.1%} of the trained parameters are tracked; left "
        f"out: {reasons}. target_modules='all' tracks {results['coverage_of_all']:.1%}.{bank}"
    )


def _about_query(results: dict[str, Any]) -> str:
    parts = []
    if "cold" in results:
        cold = results["cold"]
        parts.append(
            f" Cold (`--cold`, {cold['machine']}, load {cold['load']}): {cold['layers']} layers of {cold['side']} x "
            f"{cold['side']}, the files' pages dropped before each query."
        )
        for ours, dense in zip(cold["rows"][::2], cold["rows"][1::2], strict=True):
            scaled = "" if dense["measured"] else ", scaled up from fewer rows"
            parts.append(
                f"N = {ours['examples']:,}: {ours['store']}, {ours['bytes_per_example']:,} bytes a row, "
                f"{ours['seconds']:.2f} s; {dense['store']}, {dense['bytes_per_example']:,} bytes, "
                f"{dense['seconds']:.1f} s{scaled}: {dense['seconds'] / ours['seconds']:.0f} times as long."
            )
    if "signs" in results:
        signs = results["signs"]
        parts.append(
            f"Few queries of the default (`--signs`, {signs['machine']}, load {signs['load']}), N = "
            f"{signs['examples']:,}, CPU seconds looked up / multiplied: "
            + "; ".join(
                f"Q = {row['queries']} on {row['threads']} thread(s) {row['looked_up_cpu']:.2f} / "
                f"{row['multiplied_cpu']:.2f} ({row['looked_up_cpu'] / row['multiplied_cpu']:.2f})"
                for row in signs["rows"]
            )
            + "."
        )
    return " ".join(parts)


NOTES = {"query": _about_query, "preferences": _about_preferences, "minilm": _about_minilm}


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
            f"{results['machine']}." + ABOUT.get(bed, ""),
            table(results),
            f"![{title}: LDS against bytes per example]({bed}.png)",
        ]
        if bed == "wikitext":
            readme = HERE.parent / "README.md"
            section = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
            before, after = section.split(readme.read_text())
            readme.write_text(f"{before}{BEGIN}\n{table(results, list(SHOWN))}\n{END}{after}")
    parts += speed()
    (HERE / "RESULTS.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
