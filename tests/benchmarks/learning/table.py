"""The Markdown tables of docs/results.md, from finished runs: python tests/benchmarks/learning/table.py runs/seed0
runs/seed1 runs/seed2
"""

import json
import sys
from pathlib import Path
from statistics import fmean

TITLES = {
    "long_baseline": "single long model",
    "cold_start": "pair, after cold start",
    "trained": "**pair, after RL**",
    "compressed": "control: single long model, fine-tuned on the compressed traces",
    "solo_rl": "control: single long model, same RL on as many sampled tokens",
    "short_alone": "control: untrained short model alone",
    "long_in_both_roles": "control: trained long model in both roles",
    "short_in_both_roles": "control: trained short model in both roles",
    "equal_prices": "control: pair, RL with equal prices",
}


def blocks(run: Path) -> dict:
    found = {name: block for name, block in json.loads((run / "summary.json").read_text()).items() if name in TITLES}
    for file in sorted((run / "controls").glob("*.json")):
        found |= json.loads(file.read_text())
    return found


def main(runs: list[Path]) -> None:
    everything = [blocks(run) for run in runs]
    print("| system | " + " | ".join(run.name for run in runs) + " | mean T=1 / greedy | cost ÷ single long model |")
    print("|---|" + "---|" * (len(runs) + 2))
    for name, title in TITLES.items():
        cells, ratios = [], []
        for found in everything:
            if name not in found:
                cells.append("–")
                continue
            block = found[name]
            ratios.append((block["accuracy"], block["accuracy_greedy"], block["cost"] / found["long_baseline"]["cost"]))
            low, high = block["interval"]
            cells.append(
                f"{block['accuracy']:.3f} [{low:.2f}, {high:.2f}] / {block['accuracy_greedy']:.3f} / "
                f"{block['cost']:.1f}"
            )
        if ratios:
            sampled, greedy, cost = (fmean(column) for column in zip(*ratios, strict=True))
            print(f"| {title} | {' | '.join(cells)} | {sampled:.3f} / {greedy:.3f} | {cost:.2f} |")
    print(
        "\n| run | hand-back, problems of ≥ 2 products (cold start → trained) | format (cold start → trained) | "
        "seconds per stage |"
    )
    print("|---|---|---|---|")
    for run, found in zip(runs, everything, strict=True):
        before, after = found["cold_start"], found["trained"]
        seconds = json.loads((run / "summary.json").read_text())["seconds"]
        backs = f"{before['hand_back_rate_hard']:.3f} → {after['hand_back_rate_hard']:.3f}"
        listed = ", ".join(f"{stage} {round(value)}" for stage, value in seconds.items())
        print(f"| {run.name} | {backs} | {before['format']:.3f} → {after['format']:.3f} | {listed} |")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
