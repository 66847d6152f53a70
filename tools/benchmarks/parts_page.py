"""The page of `tools/bench parts`."""

from collections.abc import Mapping, Sequence
from typing import Any

import record
from counterfactuals import QUERIES_EACH, TAKEN_OUT
from parts_rules import FEW

from gradindex.builder.plan import DIM, RANK

SHOWN_SETS = ("even 10", "even 5", "weighted 5", "first look 5", "weighted 3", "first look 3")
ACROSS_SETS = ("even 10", "weighted 5")
SHOWN_KINDS = (  # of single timesteps, dampings and seeds of noise; all are in the JSON
    *("everything", "norms", "norms and biases", "modulation", "attention", "middle"),
    *("second half", "last block", "last resnet"),
)
QUERIES = ("validation", "generated")

Rows = Sequence[Mapping[str, Any]]


def page(results: Mapping[str, Any]) -> str:
    """Return the tables of all subjects and what they are of."""
    sets = [
        {"name": name, "timesteps": _numbers(timesteps)}
        for name, timesteps in results["sets"].items()
    ]
    subjects = results["subjects"]
    missing = ", ".join(results["missing"])
    return record.fill_page(
        "parts",
        missing=f"\n**Not measured yet: {missing}.**\n" if missing else "",
        aims=record.table(_aims_across(subjects)),
        timesteps=_numbers(results["timesteps"]),
        sets=record.table(sets),
        dim=DIM,
        rank=RANK,
        across=record.table(_across(subjects)),
        rules=record.table(_rules_across(subjects)),
        carried=_carried(subjects),
        builds=_builds(results["builds"]),
        removals=_removals(results["removals"]),
        taken_out=TAKEN_OUT,
        queries_each=QUERIES_EACH,
        subjects="\n\n".join(_subject(subject) for subject in subjects.values()),
    )


def _aims_across(subjects: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each aim: what share of the former default, and of the pixels' score, it keeps."""
    lines: dict[str, dict[str, Any]] = {}
    for name, subject in subjects.items():
        for row in subject["aims"]:
            line = lines.setdefault(row["aim"], {"within": row["aim"]} | dict.fromkeys(subjects))
            share, base = (
                (row["share"], "the former")
                if row["aim"].startswith("whitened")
                else (row["pixels"], "pixels'")
            )
            line[name] = f"{_both(share)} of {base}"
    return list(lines.values())


def _across(subjects: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each kind of parameters, a column for each subject and set of timesteps."""
    lines: dict[str, dict[str, Any]] = {}
    columns = [f"{name}, {timesteps}" for name in subjects for timesteps in ACROSS_SETS]
    for name, subject in subjects.items():
        for row in subject["rows"]:
            is_shown = row["set"] in ACROSS_SETS and row["draws"] == 1
            if is_shown and (row["method"], row["treatment"]) == ("retrac", "whitened"):
                kind = row["kind"]
                line = lines.setdefault(kind, {"parameters": kind} | dict.fromkeys(columns))
                line[f"{name}, {row['set']}"] = f"{_differences(row)}; {_cost(row)}"
    return list(lines.values())


def _rules_across(subjects: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each family of rules, number of timesteps and scores, chosen by halves."""
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, subject in subjects.items():
        for row in subject["chosen rules"]:
            identity = {
                "scores": row["treatment"],
                "rule": row["family"],
                "timesteps": row["timesteps"],
            }
            line = lines.setdefault(tuple(identity.values()), identity | dict.fromkeys(subjects))
            line[name] = f"{' and '.join(dict.fromkeys(row['rules']))}: {_differences(row)}"
    return list(lines.values())


def _carried(subjects: Mapping[str, Any]) -> str:
    """The table of rules that the other subjects choose, judged by each; needs two subjects."""
    if len(subjects) < 2:
        return "There is but one subject yet: whether a rule carries from one to another is open."
    lines = []
    for name, subject in subjects.items():
        others = [other for key, other in subjects.items() if key != name]
        for treatment in ("whitened", "plain"):
            family, rule = _best_rule(others, treatment)
            line = {"judged by": name, "scores": treatment, "rule": f"{family}, {rule}"}
            for row in subject["rules"]:
                if _rule_of(row) == (treatment, family, rule) and row["timesteps"] > 1:
                    line[f"{row['timesteps']} timesteps"] = _differences(row)
            lines.append(line)
    return record.table(lines)


def _best_rule(subjects: Sequence[Mapping[str, Any]], treatment: str) -> tuple[str, str]:
    """The rule with the largest difference from the even grid: the mean over sets and subjects."""
    sums: dict[tuple[str, str], float] = {}
    for subject in subjects:
        for row in subject["rules"]:
            if row["treatment"] == treatment and row["timesteps"] in FEW:
                rule = row["family"], row["rule"]
                added = sum(row["difference"][query][0] for query in QUERIES)
                sums[rule] = sums.get(rule, 0) + added
    return max(sums, key=lambda rule: sums[rule])


def _rule_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["treatment"], row["family"], row["rule"]


def _builds(rows: Rows | None) -> str:
    """The table of whole builds."""
    if rows is None:
        return "Not measured yet."
    cells = [
        {
            "build": row["build"],
            "time": f"{row['time']:.2f}",
            "KB a picture": f"{row['bytes'] / 1000:.1f}",
        }
        for row in rows
    ]
    return record.table(cells)


def _removals(rises: Mapping[str, Mapping[str, Any]] | None) -> str:
    """The table of what taking pictures out does."""
    if rises is None:
        return "Not measured yet."
    return record.table(
        [
            {"taken out by": name, **{query: _interval(row[query]) for query in QUERIES}}
            for name, row in rises.items()
        ]
    )


def _subject(results: Mapping[str, Any]) -> str:
    """The part of the page on one subject."""
    agreement = results["seeds_agree"]
    agree = [f"{value:.2f} ({name})" for name, value in agreement.items() if value is not None]
    return record.fill_page(
        "parts-subject",
        subject=results["subject"],
        models=results["subject"]["subsets"] * results["subject"]["seeds"],
        agreement=f" Losses of two of the same half go together by ρ = {', '.join(agree)}."
        if agree
        else "",
        forward=results["forward"],
        timed=" Costs are of a larger model of the same structure."
        if results["timed_larger"]
        else "",
        aims=record.table([_aim_row(row) for row in results["aims"]]),
        sets=record.table(_set_rows(results)),
        frontier=record.table([_chosen_row(row) for row in frontier(results["chosen"])]),
        singles=record.table(_single_rows(results["singles"])),
        damping=record.table(_damping_rows(results["damping"])),
        noise=record.table(_noise_rows(results)),
    )


def frontier(rows: Rows) -> list[Mapping[str, Any]]:
    """Return, for whitened and for plain scores, the rows that no cheaper one is as good as.

    Good is what the halves that chose say, not those that judge.
    """
    best: list[Mapping[str, Any]] = []
    for treatment in ("whitened", "plain"):
        value = float("-inf")
        of_treatment = [row for row in rows if row["treatment"] == treatment]
        for row in sorted(of_treatment, key=lambda row: (row["steps"], -row["value"])):
            if row["value"] > value:
                value = row["value"]
                best.append(row)
    return best


def _shown(rows: Rows) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["kind"] in SHOWN_KINDS]


def _costs(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"steps": f"{row['steps']:.2f}", "KB": f"{row['bytes'] / 1000:.1f}"}


def _cost(row: Mapping[str, Any]) -> str:
    return f"{row['steps']:.2f} steps, {row['bytes'] / 1000:.1f} KB"


def _aim_row(row: Mapping[str, Any]) -> dict[str, Any]:
    picks = [
        f"{pick['kind']}, {pick['method']} at {_numbers(pick['chosen'])}: {_cost(pick)},"
        f" seeds agree {pick['seeds_agree']:.2f}"
        for pick in row["picks"]
    ]
    cells: dict[str, Any] = {"within": row["aim"], "chosen by each half": "; ".join(picks)}
    for name in QUERIES:
        cells[name] = _interval(row[name])
    cells["of the former"] = _both(row["share"])
    cells["of pixels'"] = _both(row["pixels"])
    return cells


def _set_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each kind and set of timesteps: whitened and plain ReTrac beside each other."""
    rows = {
        (row["kind"], row["set"], row["treatment"]): row
        for row in results["rows"]
        if row["method"] == "retrac" and row["draws"] == 1
    }
    lines = []
    for kind in _shown(results["kinds"]):
        for name in SHOWN_SETS:
            whitened, plain = (
                rows[kind["kind"], name, treatment] for treatment in ("whitened", "plain")
            )
            cells = {"parameters": f"{kind['kind']} ({kind['numbers']:,})", "timesteps": name}
            cells |= _costs(whitened)
            for query in QUERIES:
                cells[f"{query}, whitened"] = f"{whitened[query][0]:.1f}"
                cells[f"{query}, beside the former"] = _interval(whitened["difference"][query])
            cells["plain, both"] = _means(plain)
            lines.append(cells)
    return lines


def _chosen_row(row: Mapping[str, Any]) -> dict[str, Any]:
    cells = {
        "parameters": row["kind"],
        "timesteps chosen by each half": "; ".join(map(_numbers, row["chosen"])),
        **_costs(row),
        "score": f"{row['treatment']} {row['method']}",
    }
    for query in QUERIES:
        cells[query] = _interval(row[query])
    cells["of the former"] = _both(row["share"])
    return cells


def _single_rows(rows: Rows) -> list[dict[str, Any]]:
    """A line for each timestep: ReTrac of some kinds, whitened, and plain in brackets."""
    means = {
        (row["timestep"], row["kind"], row["treatment"]): _means(row)
        for row in _shown(rows)
        if row["method"] == "retrac"
    }
    kinds = list(dict.fromkeys(kind for _, kind, _ in means))
    lines = []
    for t, ratio in sorted({(row["timestep"], row["log_snr"]) for row in rows}):
        line = {"t": f"{t}", "log-SNR": f"{ratio:.1f}"}
        for kind in kinds:
            line[kind] = f"{means[t, kind, 'whitened']} ({means[t, kind, 'plain']})"
        lines.append(line)
    return lines


def _damping_rows(rows: Rows) -> list[dict[str, Any]]:
    """A line for each kind, set of timesteps and method, a column for each damping."""
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in _shown(rows):
        identity = {"parameters": row["kind"], "timesteps": row["set"], "method": row["method"]}
        line = lines.setdefault(tuple(identity.values()), identity)
        line[f"{row['damping']:g}"] = _means(row)
    return list(lines.values())


def _noise_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each kind, set of timesteps and number of draws: whitened, and plain."""
    columns = ("kind", "set", "draws", "method", "treatment")
    scores = {tuple(row[name] for name in columns): row for row in results["rows"]}
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in sorted(_shown(results["noise"]), key=lambda row: row["treatment"], reverse=True):
        identity = {"parameters": row["kind"], "timesteps": row["set"], "draws": row["draws"]}
        line = lines.setdefault(tuple(identity.values()), identity | _costs(row))
        treatment = row["treatment"]
        line[f"seeds agree, {treatment}"] = f"{row['seeds_agree']:.2f}"
        line[f"scores, {treatment}"] = _means(scores[tuple(row[name] for name in columns)])
    return list(lines.values())


def _differences(row: Mapping[str, Any]) -> str:
    """The differences of validation and generated pictures, without their intervals."""
    return " / ".join(f"{row['difference'][query][0]:+.1f}" for query in QUERIES)


def _means(row: Mapping[str, Any]) -> str:
    """The scores of validation and generated pictures."""
    return " / ".join(f"{row[query][0]:.1f}" for query in QUERIES)


def _numbers(timesteps: Sequence[int]) -> str:
    return ", ".join(map(str, timesteps))


def _interval(figures: Sequence[float]) -> str:
    mean, low, high = figures
    return f"{mean:.1f} ({low:.1f} … {high:.1f})"


def _both(shares: Mapping[str, Sequence[float] | None]) -> str:
    """How many times another's score, for validation and generated pictures."""
    cells = []
    for query in QUERIES:
        share = shares[query]
        cells.append("–" if share is None else "{:.2f} ({:.2f} … {:.2f})".format(*share))
    return " / ".join(cells)
