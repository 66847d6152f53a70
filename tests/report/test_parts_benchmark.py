"""`tools/bench parts` makes its figures of products of gradients; here of gradients themselves."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from scipy.stats import spearmanr

import gradindex
from gradindex.models.checkpoints import Checkpoints
from gradindex.models.denoiser import Denoiser
from gradindex.models.examples import Examples
from gradindex.search import row_whitening
from gradindex.search.factors import DAMPING
from gradindex.search.pictures import read_pictures
from gradindex.search.scoring import METHODS

sys.path.append(str(Path(__file__).parents[2] / "tools" / "benchmarks"))
import record
from kept_losses import keep_losses, restore_losses
from oracles import gradient, load
from parts import FILE, finished, run
from parts_choice import AIMS, Halves, Part, aims, choose_timesteps
from parts_kinds import EVERYTHING, kinds_of
from parts_lora import COLOUR, lora_subject
from parts_products import SEEDS, gradient_products
from parts_rules import chosen_rule_rows
from parts_scores import Predictions, Scoring, block_scores, judge, over
from parts_subjects import NAMES, measured_subject
from parts_timesteps import COUNTS, DRAWS, TIMESTEPS, candidate_rules, log_snr, timestep_sets
from subset_models import Subject, losses_file, new_pipeline

N, Q, M = 12, 8, 10  # pictures, queries (half of them generated) and models
SUBJECT = Subject(pictures=N, queries=Q // 2, subsets=M)


@pytest.fixture(scope="module")
def denoiser(model: Path) -> Denoiser:
    return Checkpoints([model], model, None, "cpu", "float32")[0]


def examples_of(denoiser: Denoiser, files: list[Path]) -> Examples:
    return Examples(read_pictures(files, denoiser.description.image))


def test_products_are_those_of_gradients_by_autograd(
    model: Path, pictures: Path, denoiser: Denoiser
) -> None:
    files = sorted(pictures.iterdir())[:3]
    kinds = kinds_of(denoiser.model)
    # Room for a few hundred numbers of each gradient at once.
    products = gradient_products(denoiser, examples_of(denoiser, files), kinds, 300, 1, 10_000)
    pipeline = DDPMPipeline.from_pretrained(model)
    named = list(pipeline.unet.named_parameters())
    for draws in DRAWS:
        rows = []
        for file in files:
            drawn = []
            for draw in range(draws):
                epsilon = gradindex.noise(1, None, 300, draw, (1, 8, 8))
                drawn.append(gradient(pipeline, load(file), 300, torch.from_numpy(epsilon), "mse"))
            rows.append(np.mean(drawn, axis=0))
        for kind, names in kinds.items():
            is_in = np.concatenate([np.full(value.numel(), name in names) for name, value in named])
            chosen = np.stack(rows)[:, is_in]
            expected = chosen @ chosen.T
            np.testing.assert_allclose(
                products[draws, kind], expected, rtol=0, atol=1e-5 * expected.max()
            )


@pytest.mark.parametrize("kind", [EVERYTHING, "norms"])
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_an_index(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    pictures: Path,
    queries: list[Path],
    denoiser: Denoiser,
    kind: str,
    method: str,
) -> None:
    """Wide rows are whitened by the store in kernel form, narrow ones by a Cholesky factor."""
    timesteps = (100, 700)
    params = None if kind == EVERYTHING else r"norm\d?\.|group_norm|conv_norm_out"
    index = gradindex.build(
        tmp_path / "index",
        model=model,
        data=pictures,
        timesteps=timesteps,
        projection="none",
        params=params,
        device="cpu",
    )
    files = [*sorted(pictures.iterdir()), *queries]
    count = len(files) - len(queries)
    kinds = kinds_of(denoiser.model)
    examples = examples_of(denoiser, files)
    products = [gradient_products(denoiser, examples, kinds, t, 0)[1, kind] for t in timesteps]
    for damping in (None, 0.1, DAMPING):
        scoring = Scoring(method, damping)
        scores = np.mean([block_scores(product, count, scoring) for product in products], axis=0)
        whiten = False if damping is None else damping
        expected = index.scores(queries, method, whiten=whiten)
        largest = np.abs(expected).max()
        if whiten and kind == EVERYTHING:
            # The store keeps products of few or wide rows in float32. N λ is DAMPING times N mean
            # squares: of 9 pictures it is so little that this shows, and nothing else does.
            assert np.abs(scores - expected).max() < 1e-3 * largest
            with monkeypatch.context() as patch:
                patch.setattr(row_whitening.RowSolver, "whitened", whitened_in_double)
                expected = index.scores(queries, method, whiten=whiten)
        tolerance = 1e-4 if damping == DAMPING else 1e-6
        assert np.abs(scores - expected).max() < tolerance * largest


def whitened_in_double(
    solver: Any, sample: torch.Tensor, q: torch.Tensor, damping: float
) -> torch.Tensor:
    """What the store does with few rows S [m, D] and queries [Q, D], in float64 throughout."""
    rows, queries = sample.double(), q.double()
    moments = rows @ rows.T / len(rows)
    load = damping * moments.trace()
    inner = torch.linalg.solve(moments + load * torch.eye(len(rows)), rows @ queries.T)
    return ((queries - inner.T @ rows / len(rows)) / load).float()


def gradients(seed: int) -> np.ndarray:
    """Random gradients [seeds, T, N + Q, 40] that have something in common."""
    random = np.random.default_rng(seed)
    shape = len(SEEDS), len(TIMESTEPS), N + Q, 40
    return random.standard_normal(shape) + random.standard_normal(40)


def slow_scores(rows: np.ndarray, scoring: Scoring) -> np.ndarray:
    """Scores [Q, N] of one timestep's gradients [N + Q, D], a query at a time."""
    if scoring.method == "retrac":
        rows = np.stack([row / np.linalg.norm(row) for row in rows])
    training, queries = rows[:N], rows[N:]
    if scoring.damping is not None:
        moments = sum(np.outer(row, row) for row in training) / N
        load = scoring.damping * np.mean([row @ row for row in training])
        inverse = np.linalg.inv(moments + load * np.eye(rows.shape[1]))
        queries = [inverse @ query for query in queries]
    return np.array([[row @ query for row in training] for query in queries])


def truth() -> tuple[np.ndarray, np.ndarray]:
    """Halves [M, N] bool and losses [M, Q]."""
    random = np.random.default_rng(7)
    subsets = np.stack([random.permutation(N) < N // 2 for _ in range(M)])
    return subsets, random.standard_normal((M, Q))


def predictions(rows: np.ndarray, scoring: Scoring) -> np.ndarray:
    """What the benchmark keeps of gradients, [seeds, T, Q, M]."""
    subsets, _ = truth()
    return np.array(
        [
            [block_scores(block @ block.T, N, scoring) @ subsets.T for block in blocks]
            for blocks in rows
        ]
    )


@pytest.mark.parametrize("damping", [None, 3e-4, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_any_timesteps_are_judged_as_by_scores_themselves(
    method: str, damping: float | None
) -> None:
    rows, scoring = gradients(0), Scoring(method, damping)
    subsets, losses = truth()
    chosen = (25, 300, 950)
    result = judge(over(predictions(rows, scoring), chosen), losses)
    values = []
    for blocks in rows:
        scores = sum(slow_scores(blocks[TIMESTEPS.index(t)], scoring) for t in chosen)
        for query in range(Q):
            predicted = [scores[query][subset].sum() for subset in subsets]
            values.append(spearmanr(predicted, -losses[:, query]).statistic)
    assert result.mean == pytest.approx(100 * np.mean(values), abs=1e-6)
    mean, low, high = result.figures()
    assert low < mean < high


def test_each_timestep_chosen_adds_most_to_those_before_it() -> None:
    scoring = Scoring("tracin", None)
    sums = predictions(gradients(1), scoring)
    _, losses = truth()

    def value(predicted: np.ndarray) -> float:
        return judge(predicted, losses).mean

    chosen = choose_timesteps(sums, value, 3)
    for size in (1, 2, 3):
        before, best = chosen[: size - 1], value(over(sums, chosen[:size]))
        others = [value(over(sums, [*before, t])) for t in TIMESTEPS if t not in before]
        assert best == pytest.approx(max(others))


def test_what_judges_has_no_part_in_the_choice() -> None:
    scoring, part = Scoring("retrac", 3e-4), Part("norms", 1000, 0.7)
    sums = predictions(gradients(2), scoring)
    _, losses = truth()
    changed = losses.copy()
    changed[1::2, 1::2] = np.random.default_rng(3).standard_normal((M // 2, Q // 2))
    before = Halves(SUBJECT, losses).choose(part, scoring, sums)
    after = Halves(SUBJECT, changed).choose(part, scoring, sums)
    assert [choice.timesteps[0] for choice in before] == [choice.timesteps[0] for choice in after]
    assert [choice.values[0] for choice in before] == [choice.values[0] for choice in after]
    # The second half judges what the first has chosen; the first does not see what changed.
    for choice, other in zip(before, after, strict=True):
        assert choice.judgements[0]["validation"].mean != other.judgements[0]["validation"].mean
    assert {choice.timesteps[1] for choice in before} != {choice.timesteps[1] for choice in after}


def test_aims_keep_to_their_costs() -> None:
    sums = predictions(gradients(4), Scoring("retrac", 3e-4))
    _, losses = truth()
    halves = Halves(SUBJECT, losses)
    choices = [
        choice
        for part in (Part("norms", 1000, 0.7), Part(EVERYTHING, 10**6, 0.9))
        for choice in halves.choose(part, Scoring("retrac", 3e-4), sums)
    ]
    usual = halves.judge(over(sums, (500,)))
    rows = {row["aim"]: row for row in aims(choices, usual, usual)}
    cheap, dear, _ = (aim for aim in AIMS if aim.treatment == "whitened")
    for aim in (cheap, dear):
        for pick in rows[aim.name]["picks"]:
            assert pick["steps"] <= aim.steps
            assert pick["bytes"] <= aim.bytes
            assert pick["bytes"] == 6 * min(4096, 1000) * pick["timesteps"]


def test_kinds_are_what_modules_say(denoiser: Denoiser) -> None:
    kinds = kinds_of(denoiser.model)
    names = [name for name, _ in denoiser.model.named_parameters()]
    assert kinds[EVERYTHING] == tuple(names)
    assert all("norm" in name for name in kinds["norms"])
    assert {name for name in names if "norm" in name} == set(kinds["norms"])
    assert {name for name in names if name.endswith("bias")} <= set(kinds["norms and biases"])
    assert {name.split(".")[0] for name in kinds["last block"]} == {
        *("up_blocks", "conv_norm_out", "conv_out")
    }
    assert {name.split(".")[0] for name in kinds["middle"]} == {"mid_block"}
    assert len(set(kinds.values())) == len(kinds)


def test_rules_give_what_they_say() -> None:
    ratios = dict(zip(TIMESTEPS, log_snr(), strict=True))
    sets = timestep_sets()
    assert sets["even 10"] == tuple(range(50, 1000, 100))
    # A quarter of a way from 3 to −2.5 each side of the middle: 1.625 and −1.125.
    assert sets["even in log-SNR 2"] == (150, 350)
    # Quartiles of a normal distribution are 0.674 standard deviations away: 1.85 and −0.85.
    assert sets["weighted 2"] == (100, 350)
    for rules in candidate_rules().values():
        for rule in rules.values():
            for count in COUNTS:
                chosen = rule(count)
                assert len(set(chosen)) == count
                assert list(chosen) == sorted(set(chosen) & set(TIMESTEPS))
    wide, narrow = (candidate_rules()["weighted"][f"+0 ± {width}"](5) for width in (3, 1))
    spreads = [ratios[rule[0]] - ratios[rule[-1]] for rule in (wide, narrow)]
    assert spreads[0] > 2 * spreads[1]


class FixedPredictions(Predictions):
    """Predictions of one kind, not from files."""

    def __init__(self, sums: np.ndarray) -> None:
        self.kinds = [EVERYTHING]
        self._sums = sums

    def of(self, kind: str, scoring: Scoring, draws: int = 1) -> np.ndarray:
        return self._sums


def test_rules_are_chosen_by_one_half_and_judged_by_the_other() -> None:
    sums = FixedPredictions(predictions(gradients(5), Scoring("retrac", None)))
    _, losses = truth()
    halves = Halves(SUBJECT, losses)
    rows = [row for row in chosen_rule_rows(halves, sums) if row["treatment"] == "plain"]
    for family, rules in candidate_rules().items():
        for row in rows:
            if row["family"] != family:
                continue
            for half, name in enumerate(row["rules"]):
                values = {
                    rule: sum(
                        halves.values[half](
                            over(sums.of(EVERYTHING, Scoring("retrac", None)), rules[rule](n))
                        )
                        for n in (2, 3, 5)
                    )
                    for rule in rules
                }
                assert values[name] == pytest.approx(max(values.values()))
            judged = [
                halves.judge_by(
                    1 - half, over(sums.of(EVERYTHING, Scoring("retrac", None)), chosen)
                )
                for half, chosen in enumerate(row["chosen"])
            ]
            mean = np.mean([judgement["generated"].mean for judgement in judged])
            assert row["generated"][0] == pytest.approx(mean)


def test_a_page_is_made_of_the_subjects_that_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those without figures in the work folder, the published ones."""
    monkeypatch.setattr(record, "FOLDER", tmp_path / "docs")
    first, *others = (measured_subject(name, tmp_path) for name in NAMES)
    with pytest.raises(SystemExit, match="no subject is measured there yet"):
        finished(tmp_path, list(NAMES))
    (tmp_path / first.folder).mkdir()
    (tmp_path / first.folder / FILE).write_text(json.dumps({"subject": {"title": first.title}}))
    results = finished(tmp_path, list(NAMES))
    assert list(results["subjects"]) == [NAMES[0]]
    assert results["missing"] == [other.title for other in others]
    (tmp_path / "docs").mkdir()
    published = {name: {"subject": {"title": "published"}} for name in (NAMES[2], NAMES[0])}
    (tmp_path / "docs" / "parts.json").write_text(json.dumps({"subjects": published}))
    results = finished(tmp_path, list(NAMES))
    assert list(results["subjects"]) == [NAMES[0], NAMES[2]]
    assert results["subjects"][NAMES[0]]["subject"]["title"] == first.title
    assert results["missing"] == [others[0].title, others[2].title]


def small_pictures(work: Path) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.uniform(-1, 1, (N + Q // 2, 1, 16, 16)).astype(np.float32)


def test_losses_go_to_another_machine_with_the_pictures_that_they_are_of(tmp_path: Path) -> None:
    subject = replace(SUBJECT, read=small_pictures)
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    random = np.random.default_rng(1)
    generated = random.integers(256, size=(Q // 2, 1, 16, 16)) / 127.5 - 1
    for folder in (first, second, other):
        folder.mkdir()
    np.save(first / "generated.npy", generated)
    np.save(other / "generated.npy", -generated)
    losses = {half: random.uniform(size=Q) for half in (0, 3)}
    for half, values in losses.items():
        np.save(losses_file(first, half, 0), values)
    file = tmp_path / "losses.json"
    assert keep_losses(file, "a", first, subject) == len(losses)
    assert restore_losses(file, "a", other, subject) == 0
    assert restore_losses(file, "b", second, subject) == 0
    np.save(first / "without-ab.npy", losses[0])
    assert keep_losses(file, "a", first, subject) == len(losses) + 1
    np.save(losses_file(second, 3, 0), np.zeros(Q))
    assert restore_losses(file, "a", second, subject) == 2
    np.testing.assert_array_equal(np.load(second / "generated.npy"), generated)
    np.testing.assert_allclose(np.load(losses_file(second, 0, 0)), losses[0], rtol=1e-6)
    assert not np.load(losses_file(second, 3, 0)).any()
    # What is kept stays where a machine has but some of it.
    losses_file(second, 0, 0).unlink()
    assert keep_losses(file, "a", second, subject) == len(losses) + 1


def test_a_lora_is_measured_alone_and_read_again(tmp_path: Path) -> None:
    """Its base is not trained here: one of random weights lies in its place."""
    subject = lora_subject(tmp_path / "lora", subsets=2)
    UNet2DModel(**COLOUR).save_pretrained(tmp_path / "lora" / "base")
    pipeline = new_pipeline(3, subject)
    kinds = kinds_of(pipeline.unet)
    everything = set(kinds[EVERYTHING])
    assert everything == {
        name for name, value in pipeline.unet.named_parameters() if value.requires_grad
    }
    assert everything == {*kinds["LoRA's down weights"], *kinds["LoRA's up weights"]}
    assert "norms" not in kinds
    for name in kinds["LoRA's up weights"]:
        torch.nn.init.normal_(pipeline.unet.get_parameter(name))
    subject.save(pipeline, tmp_path / "checkpoint")
    read = subject.trained(tmp_path / "checkpoint")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    torch.testing.assert_close(read(x, t).sample, pipeline.unet(x, t).sample, rtol=0, atol=0)
    assert subject.denoiser(read).trainable == list(kinds[EVERYTHING])


def test_a_subject_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match="digits: no subject; give train, keep, builds, removals, page, fashion"
    ):
        run(tmp_path, "cpu", ["train", "digits"])


STARTED = """
import os, sys
sys.path.append(sys.argv[1])
import record

if __name__ == "__main__":
    with record.processes(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        sys.stdin.read()
"""


def test_processes_end_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    """They would train on, beside the run that takes the benchmark up again."""
    script = tmp_path / "started.py"
    script.write_text(STARTED)
    command = [sys.executable, str(script), str(Path(record.__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as benchmark:
        assert benchmark.stdout is not None
        assert int(benchmark.stdout.readline()) != benchmark.pid
        benchmark.kill()
        benchmark.communicate(timeout=20)  # ends when the worker, which has its output too, does
