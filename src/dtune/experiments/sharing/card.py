"""The model card: what a stranger has to know of a policy, as Markdown; a function of facts and nothing else."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a policy; None or empty where it is not known."""

    repository: str
    """user/name."""
    kind: str
    """Its class."""
    method: str | None = None
    """How it was trained last."""
    dataset: str | None = None
    """Name of the offline data, which decides the world."""
    return_to_go: float | None = None
    """Return asked for, in reward units."""
    data_file: str | None = None
    """Name of the file of the offline data, which need not be D4RL's of that name."""
    data_hash: str | None = None
    """Its SHA-256."""
    commands: Sequence[Sequence[str]] = ()
    """What was typed, oldest first."""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    """Of dtune and what it stands on."""
    rows: Sequence[Mapping[str, float]] = ()
    """The record of the run, one row an iteration."""
    episodes: int | None = None
    """Episodes an evaluation."""
    license: str = "mit"
    """As Hugging Face abbreviates it."""


def model_card(facts: Facts) -> str:
    """The card of a policy."""
    world = facts.dataset or "a world it does not name"
    return "\n".join(
        [
            *_header(facts),
            f"# {facts.repository.partition('/')[2]}",
            "",
            f"A {facts.kind} that acts in {world}, trained with [dtune](https://pypi.org/project/dtune/)"
            f" ({facts.method or 'how is not recorded'}).",
            "",
            *_scores(facts),
            "## Act with it",
            "",
            "```python",
            "import dtune",
            "",
            f"policy = dtune.load_policy(\"{facts.repository}\")  # pip install 'dtune[hub]'",
            "```",
            "",
            *_origin(facts),
            "## Licence",
            "",
            f"{facts.license}. Weights are safetensors with hashes; nothing in this repository is ever unpickled.",
            "",
        ]
    )


def interval(mean: float, deviation: float, count: int) -> tuple[float, float]:
    """95% interval of a mean by the normal approximation: mean ± 1.96 s/√n, s with n - 1.

    Args:
        mean: of the sample.
        deviation: of the sample, with n.
        count: n, at least 2.
    """
    half = 1.96 * deviation / math.sqrt(count - 1)
    return mean - half, mean + half


def _header(facts: Facts) -> list[str]:
    """Hugging Face's front matter. JSON is YAML, so no text in it can break out."""
    tags = ["reinforcement-learning", "decision-transformer", "dtune", *([facts.dataset] if facts.dataset else [])]
    about: dict[str, Any] = {
        "license": facts.license,
        "library_name": "dtune",
        "pipeline_tag": "reinforcement-learning",
        "tags": tags,
    }
    best = _best(facts.rows)
    if best is not None and facts.dataset:
        value = best.get("eval/normalized_score", best["eval/return"])
        kind = "normalized_score" if "eval/normalized_score" in best else "mean_reward"
        task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
        result = {
            "task": task,
            "dataset": {"name": facts.data_file or facts.dataset, "type": facts.dataset},
            "metrics": [{"type": kind, "value": round(value, 2), "name": kind}],
        }
        about["model-index"] = [{"name": facts.repository.partition("/")[2], "results": [result]}]
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in about.items()), "---", ""]


def _scores(facts: Facts) -> list[str]:
    """A table of three evaluations: before, the best, which is this policy, and the last."""
    judged, best = [row for row in facts.rows if "eval/return" in row], _best(facts.rows)
    if best is None:
        return ["Nobody has judged it yet: `dtune evaluate` does.", ""]
    shown = [
        ("before", judged[0]),
        (f"**this policy**, the best of {len(judged)}", best),
        ("the run's last", judged[-1]),
    ]
    lines = [
        "## Scores",
        "",
        "| evaluation | iteration | return | 95% | D4RL-normalised score | 95% | length |",
        "|---|---|---|---|---|---|---|",
        *(f"| {name} | {row['iteration']:g} | {_cells(row, facts.episodes)} |" for name, row in shown),
        "",
    ]
    asked = "" if facts.return_to_go is None else f", asking for {facts.return_to_go:g}"
    number = "" if facts.episodes is None else f"{facts.episodes} episodes each from fixed starts, "
    lines += [
        f"{number}mean actions{asked}; one run, one seed. Intervals are ± 1.96 standard errors over episodes. The best"
        " was chosen by the number it is shown with, which flatters it.",
        "",
    ]
    return lines


def _cells(row: Mapping[str, float], episodes: int | None) -> str:
    cells = []
    for key in ("eval/return", "eval/normalized_score"):
        known = key in row
        cells.append(f"{row[key]:.1f}" if known else "")
        if known and f"{key}_std" in row and episodes is not None and episodes > 1:
            low, high = interval(row[key], row[f"{key}_std"], episodes)
            cells.append(f"[{low:.1f}, {high:.1f}]")
        else:
            cells.append("")
    return " | ".join([*cells, f"{row['eval/length']:.0f}" if "eval/length" in row else ""])


def _best(rows: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
    """The evaluation that `checkpoints/best` is of: the first of the highest return."""
    judged = [row for row in rows if "eval/return" in row]
    return max(judged, key=lambda row: row["eval/return"]) if judged else None


def _origin(facts: Facts) -> list[str]:
    lines = ["## How it was made", ""]
    if facts.commands:
        lines += ["```bash", *(shlex.join(command) for command in facts.commands), "```", ""]
    else:
        lines += ["The command is not recorded.", ""]
    if facts.dataset:
        hashed = f"SHA-256 `{facts.data_hash}`" if facts.data_hash else "its hash is not recorded"
        data = f"`{facts.data_file}`" if facts.data_file else "the file's name is not recorded"
        lines += [f"* Offline data: {data}, {hashed}", f"* World: that of {facts.dataset}, by D4RL's rules"]
    if facts.versions:
        lines.append("* Software: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()))
    return [*lines, ""]
