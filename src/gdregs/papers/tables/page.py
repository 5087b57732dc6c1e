"""The page of tables: ours beside the published ones, written from the results' JSON files."""

from collections.abc import Iterable, Mapping
from typing import Any

from gdregs.papers.grids.grid import GRIDS
from gdregs.papers.measures.claims import format_claims
from gdregs.papers.measures.measure import Measured
from gdregs.papers.tables.comparisons import AGREES, DISAGREES, OPEN
from gdregs.papers.tables.published import Z95, published_bound
from gdregs.papers.tables.statements import judge_tables
from gdregs.vae.config import Config
from gdregs.vae.show.markdown import markdown_table

TITLE = "# Image models, beside the published tables"

REFERENCE = "naive+naive"
"""The pair whose variances those of the others are given relative to."""

_INTRODUCTION = """\
Test objectives are Eq. (2) with K = 64 on dynamically binarised test images, in nats per image,
larger is better: means over seeds with 1.96 standard errors, as in the source. Pairs name the
estimator of the posterior's gradient (φ) first and of the prior's (θ) second. A comparison
takes the difference seed by seed: the same seeds draw the same initial weights and batches. It
is called "agrees" or "disagrees" where both our difference and the published one are decided,
and "undecided" otherwise; where nothing is published, the papers' statement is that the first is
better. The published one is decided where its 95% confidence interval leaves 0 out. Ours is by
Student's t over seeds at the plan's looks, at the first 3, 5 and 10 seeds (levels of 1%, 1.5% and
2.5%, which add up to 5%): what one look has decided stays so, and between two looks nothing is
decided. A column p is that of the last look (of fewer than three seeds, that of all), corrected by
Holm's procedure for all comparisons of the table; means and errors are over all seeds. A run that
is scaled down cannot be expected to reach the published numbers; what can be compared is the order.
"""


_STATEMENTS = """\
## What the paper says beside its tables

Means over seeds, with half the width of their 95% t interval as two errors, of runs as long as said
above. Statements are judged as comparisons are, by Student's t over seeds at the plan's looks,
those on variances in a table together, and those on the KL together. In brackets is p at the last
look, corrected by Holm's procedure. Of two posteriors the number is the larger one, and p says how
sure it is that both lie below the limit, or that one does not.
"""

_TIMES = """\
Times of steps are medians over steps that ran in turn, judged by three of their standard errors.
"""


def format_page(
    contents: Mapping[str, Mapping[str, Any]], cost: Mapping[str, Any] | None = None
) -> str:
    """The whole page, from the results of grids by name and of `benchmarks/cost.py`."""
    parts = [TITLE, _INTRODUCTION]
    for name, content in contents.items():
        parts.append(_format_grid(name, content))
    judged = judge_tables(contents, cost)
    if judged:
        parts.append((_STATEMENTS + ("" if cost is None else _TIMES)).rstrip())
        parts.append(format_claims(judged).rstrip())
    return "\n\n".join(parts) + "\n"


def _format_grid(name: str, content: Mapping[str, Any]) -> str:
    cells, resampled = content["cells"], content["resampled"]
    parts = [
        f"## {content['title']}",
        f"{content['scale']} `{content['command']}`, {content['date']}, {content['hardware']}.",
    ]
    if cells and name in GRIDS:
        parts.append(_format_bounds(name, cells))
        verdicts = [row["verdict"] for row in content["comparisons"]]
        counts = ", ".join(
            f"{verdicts.count(v)} {v}" for v in (AGREES, DISAGREES, OPEN) if v in verdicts
        )
        if counts:
            parts.append(f"Of {len(verdicts)} comparisons: {counts}.")
            parts.append(_format_comparisons(content["comparisons"]))
        parts.append(_format_gradients(cells))
    if resampled:
        parts.append(_format_resampled(cells, resampled))
    parts += [f"{title}:\n\n![{title}]({key}.png)" for key, title in content["titles"].items()]
    return "\n\n".join(parts)


def _rows(cells: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        rows.setdefault(cell["row"], {})[cell["pair"]] = cell
    return rows


def _pairs(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(cell["pair"] for cell in cells))


def _with_bar(measured: Measured | None, digits: int = 2) -> str:
    if measured is None:
        return ""
    if not measured.error >= 0:
        return f"{measured.value:.{digits}f}"
    return f"{measured.value:.{digits}f} ± {Z95 * measured.error:.{digits}f}"


def _format_bounds(name: str, cells: list[Mapping[str, Any]]) -> str:
    pairs = _pairs(cells)
    lines = []
    for row, by_pair in _rows(cells).items():
        ours = {pair: Measured(**cell["test_bound"]) for pair, cell in by_pair.items()}
        best = max(value.value for value in ours.values())
        texts = {
            pair: f"**{_with_bar(value)}**" if value.value == best else _with_bar(value)
            for pair, value in ours.items()
        }
        lines.append([row, "ours", *(texts.get(pair, "") for pair in pairs)])
        published = {
            pair: published_bound(name, Config(**cell["config"])) for pair, cell in by_pair.items()
        }
        if any(published.values()):
            lines.append(["", "published", *(_with_bar(published.get(pair)) for pair in pairs)])
    return markdown_table(["row", "", *pairs], lines)


def _format_comparisons(comparisons: list[Mapping[str, Any]]) -> str:
    lines = []
    for row in comparisons:
        published = None if row["published"] is None else Measured(**row["published"])
        lines.append(
            [
                row["question"],
                row["row"],
                f"{row['better']} − {row['worse']}",
                _with_bar(Measured(**row["ours"]), 3),
                _with_bar(published, 3),
                f"{row['p_value']:.2g}",
                f"**{row['verdict']}**" if row["verdict"] != OPEN else row["verdict"],
            ]
        )
    header = ["question", "row", "difference", "ours", "published", "p", "the order"]
    return markdown_table(header, lines)


def _format_gradients(cells: list[Mapping[str, Any]]) -> str:
    """Variances at the end of training relative to those of the row's reference, KL, and ESS.

    The reference is naive+naive, and the first pair of a row that was trained without that.
    """
    lines = []
    rows = _rows(cells)
    for row, by_pair in rows.items():
        reference = by_pair.get(REFERENCE, next(iter(by_pair.values())))
        for pair, cell in by_pair.items():
            last = {name: _average(values) for name, values in cell["last"].items()}
            layers = [_fixed(value, 2) for name, value in last.items() if name.startswith("kl.")]
            ratios = [
                _ratio(last, reference, f"variance.{group}")
                for group in ("posterior", "prior", "likelihood")
            ]
            size = _fixed(last.get("test_effective_sample_size"), 2)
            lines.append(
                [row, pair, *ratios, " + ".join(layers), size, _fixed(last["train_bound"], 2)]
            )
            row = ""
    header = ["row", "pair", "var φ", "var θ", "var λ", "KL by layer", "ESS", "train objective"]
    lacking = any(REFERENCE not in by_pair for by_pair in rows.values())
    elsewhere = ", or with the first pair of a row that has none" if lacking else ""
    return (
        "At the end of training, means over seeds. Variances of the gradients of the posterior (φ),"
        " prior (θ) and likelihood (λ) are relative to those of the model that was trained with"
        f" {REFERENCE}{elsewhere}; each model is measured with the pair that it was trained with."
        "\n\n" + markdown_table(header, lines)
    )


def _average(values: list[float]) -> float:
    return sum(values) / len(values)


def _fixed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _ratio(last: Mapping[str, float], reference: Mapping[str, Any], name: str) -> str:
    if name not in last or not _average(reference["last"][name]):
        return ""
    return f"{last[name] / _average(reference['last'][name]):.3g}"


def _format_resampled(cells: list[Mapping[str, Any]], resampled: list[Mapping[str, Any]]) -> str:
    lines = []
    for again in resampled:
        same = [c for c in cells if (c["row"], c["pair"]) == (again["row"], again["pair"])]
        for cell in [*same, again]:
            samples = cell["config"]["gradient_samples"] or cell["config"]["num_samples"]
            last = {name: _average(values) for name, values in cell["last"].items()}
            lines.append(
                [
                    cell["row"],
                    cell["pair"],
                    str(samples),
                    _with_bar(Measured(**cell["test_bound"]), 3),
                    _fixed(last["train_bound"], 2),
                    *(
                        _fixed(last.get(f"variance.{group}"), 2)
                        for group in ("posterior", "prior", "likelihood")
                    ),
                    f"{cell['images_per_second']:.0f}",
                ]
            )
    header = [
        "row", "pair", "M of 64", "test objective", "train objective", "var φ", "var θ", "var λ",
        "images/s",
    ]  # fmt: skip
    return (
        "The backward pass on all K samples, and on M = 8 of them, resampled without bias, from the"
        " same seeds:\n\n" + markdown_table(header, lines)
    )
