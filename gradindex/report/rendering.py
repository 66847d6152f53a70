"""The answer to a query as JSON and as a table of text."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from gradindex.report.printable import printable
from gradindex.search.asked import asked_text
from gradindex.search.results import Group, Hit, Result, Verdict

PLAIN_SCORES = {"tracin": "inner product", "retrac": "cosine"}  # what they are, by method
TITLES = ("proponents", "opponents")
COSINES = ("pixel", "embedding")  # fields of a hit, that are columns of the table where known
MARKED = {"attributable": "stands out", "copied": "copied"}  # what a verdict says of hits it names
NONE_ABOVE_CHANCE = "None of these groups stands above chance."


def to_json(
    results: Sequence[Result], index: str, method: str, k: int, whitened: bool = False
) -> str:
    """Return the JSON of a query, as docs/cli.md shows it.

    Args:
        index, method, k: as the query was asked.
        whitened: whether the query was.
    """
    return json.dumps(to_values(results, index, method, k, whitened), indent=1)


def to_values(
    results: Sequence[Result], index: str, method: str, k: int, whitened: bool = False
) -> dict[str, Any]:
    """Return what `to_json` writes, with the same arguments."""
    queries = []
    for result in results:
        query: dict[str, Any] = {"picture": result.picture}
        if result.asked:
            query["asked"] = dict(result.asked)
        query["hits"] = [_hit_values(hit) for hit in result.hits]
        if result.opponents is not None:
            query["opponents"] = [_hit_values(hit) for hit in result.opponents]
        if result.verdict is not None:
            query["verdict"] = asdict(result.verdict)
        if result.groups is not None:
            query["groups"] = [asdict(group) for group in result.groups]
        queries.append(query)
    answer: dict[str, Any] = {"index": index, "method": method, "k": k}
    if whitened:
        answer["whitened"] = True
    answer["queries"] = queries
    return answer


def _hit_values(hit: Hit) -> dict[str, Any]:
    """A hit's fields; `by_timestep` becomes a list of pairs, for JSON has no numbers as keys.

    Fields that an answer may lack are left out where they are None.
    """
    fields = asdict(hit)
    by_timestep = fields.pop("by_timestep")
    for name in ("duplicates", *COSINES, "caption"):
        if fields[name] is None:
            del fields[name]
    if by_timestep is not None:
        fields["by_timestep"] = [list(pair) for pair in by_timestep.items()]
    return fields


def to_table(
    results: Sequence[Result],
    method: str,
    whitened: bool = False,
    titles: tuple[str, str] = TITLES,
    ends: tuple[str, str] = ("", ""),
) -> str:
    """Return a block of lines for each list of each picture: rank, score ± standard error, z, id.

    Before the id stand cosines of pixels and of an embedding, where a hit of the list has one.
    After the rank of those that the verdict names stands a *.

    Args:
        titles: of the best and of the worst. ends: last lines of their lists, where not empty.
    """
    kind = score_kind(method, whitened)
    lines = []
    for result in results:
        asked = printable(result.picture + asked_text(result.asked))
        if result.verdict is not None:
            lines.append(f"{asked}: {printable(result.verdict.text)}")
        for (title, hits), end in zip(titled_lists(result, titles), ends, strict=False):
            cosines = [
                name for name in COSINES if any(getattr(hit, name) is not None for hit in hits)
            ]
            named, meaning = marked_hits(result.verdict) if hits is result.hits else ([], "")
            legend = [f"*: {meaning}"] if any(hit.id in named for hit in hits) else []
            columns = [f"{kind} ± standard error over timesteps", "z", *cosines, *legend]
            lines.append(f"{asked}: {title} ({method}, {', '.join(columns)})")
            for hit in hits:
                lines += _hit_lines(hit, cosines, "*" if hit.id in named else " ")
            if end or not hits:
                lines.append(f"    {end or 'none'}")
            lines.append("")
        if result.groups is not None:
            lines += [*_group_lines(asked, result.groups, method, kind), ""]
    return "\n".join(lines).rstrip()


def _group_lines(asked: str, groups: Sequence[Group], method: str, kind: str) -> list[str]:
    """The groups of what was asked: share, sum of scores with its range, mean, pictures, name."""
    lines = [
        f"{asked}: groups ({method}, {kind}, sums of scores with their 95 % range)",
        f"{'share':>7}  {'sum':>11}  {'from':>11}  {'to':>11}  {'mean':>9}  {'pictures':>8}",
    ]
    for group in groups:
        numbers = "  ".join(f"{value:>11.4g}" for value in (group.score, group.low, group.high))
        note = "  (below noise)" if group.below_noise else ""
        lines.append(
            f"{group.share:>7.1%}  {numbers}  {group.mean:>9.3g}  {group.pictures:>8,} "
            f" {printable(group.group)}{note}"
        )
    if all(group.below_noise for group in groups):
        lines.append(NONE_ABOVE_CHANCE)
    return lines


def marked_hits(verdict: Verdict | None) -> tuple[Collection[str], str]:
    """Return the ids that a verdict names, and what it says of them; none where it names none.

    >>> marked_hits(Verdict("attributable", "attributable: …", ["a.png"], 0.01))
    (['a.png'], 'stands out')
    """
    if verdict is None or verdict.kind not in MARKED:
        return [], ""
    return verdict.ids, MARKED[verdict.kind]


def _hit_lines(hit: Hit, cosines: Sequence[str], mark: str) -> list[str]:
    """A hit's line of the table, and one for its timesteps where they were asked for.

    Args:
        cosines: which of them the table has. mark: a letter after the rank.
    """
    z = "" if hit.z is None else f"{hit.z:.1f}"
    score = f"{hit.score:>11.4g}{plus_minus(hit):<12}"
    values = [getattr(hit, name) for name in cosines]
    texts = ["" if value is None else f"{value:.2f}" for value in values]
    columns = "  ".join([f"{z:>6}", *(f"{text:>5}" for text in texts)])
    more = f"  (and {len(hit.duplicates)} like it)" if hit.duplicates else ""
    lines = [f"{hit.rank:>5}{mark} {score}  {columns}  {printable(hit.id)}{more}"]
    if hit.by_timestep is not None:
        lines.append(f"       {timestep_text(hit.by_timestep)}")
    return lines


def score_kind(method: str, whitened: bool) -> str:
    """Return what a score is, in words.

    >>> score_kind("retrac", whitened=False)
    'cosine'
    """
    return "whitened" if whitened else PLAIN_SCORES[method]


def titled_lists(result: Result, titles: tuple[str, str] = TITLES) -> list[tuple[str, list[Hit]]]:
    """Return a result's lists with their titles: proponents, and opponents where there are any."""
    lists = [(titles[0], result.hits)]
    if result.opponents is not None:
        lists.append((titles[1], result.opponents))
    return lists


def plus_minus(hit: Hit) -> str:
    """Return a hit's standard error as ` ± 0.03`; empty where it has none."""
    return "" if hit.stderr is None else f" ± {hit.stderr:.2g}"


def timestep_text(by_timestep: dict[float, float]) -> str:
    """Return what each timestep adds to a score, in words.

    >>> timestep_text({100.0: -0.02, 500.0: 0.04})
    't = 100: -0.02, t = 500: 0.04'
    """
    return ", ".join(f"t = {t:g}: {part:.3g}" for t, part in by_timestep.items())
