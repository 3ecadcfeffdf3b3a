"""Predicting a device from others and a few measurements of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from edgekd.errors import UserError
from edgekd.profiling.predict import LatencyPredictor, Population, choose_samples, fit, learn, next_sample
from tests.profiling.predict.devices import NETWORKS, latencies, networks

ARCHS = networks()
OTHERS = {f"board {index}": latencies(ARCHS, index) for index in range(5)}
NEW = latencies(ARCHS, 9)


@pytest.fixture(scope="module")
def population() -> Population:
    return learn(ARCHS, OTHERS)


@pytest.fixture(scope="module")
def predictor(population: Population) -> LatencyPredictor:
    chosen = choose_samples(ARCHS, OTHERS, 10, population=population)
    return fit(ARCHS, OTHERS, {index: NEW[index] for index in chosen}, population=population)


def test_ten_chosen_samples_rank_and_predict_a_new_device(predictor: LatencyPredictor) -> None:
    median, low, high = predictor.predict(ARCHS)
    assert spearmanr(median, NEW).statistic > 0.985
    assert np.mean(np.abs(median / NEW - 1) < 0.1) > 0.95
    assert np.all((low > 0) & (low <= median) & (median <= high))


def test_intervals_hold_about_what_they_claim_over_devices(population: Population) -> None:
    held = []
    for device in range(20, 26):
        truth = latencies(ARCHS, device)
        chosen = choose_samples(ARCHS, None, 30, population=population)
        _, low, high = fit(ARCHS, None, (chosen, truth[chosen]), population=population).predict(ARCHS)
        held.append(np.mean((truth >= low) & (truth <= high)))
    assert 0.82 < np.mean(held) < 0.97


def test_a_higher_level_gives_wider_intervals(predictor: LatencyPredictor) -> None:
    _, low, high = predictor.predict(ARCHS[:20], level=0.5)
    _, lower, higher = predictor.predict(ARCHS[:20], level=0.95)
    assert np.all(lower <= low)
    assert np.all(high <= higher)


def test_a_network_from_outside_is_predicted_like_those_of_the_fit(predictor: LatencyPredictor) -> None:
    fresh = [arch for arch in networks(7) if arch not in ARCHS]
    median, _, _ = predictor.predict(fresh)
    assert np.mean(np.abs(median / latencies(fresh, 9, noise=0.0) - 1)) < 0.1


def test_equal_arguments_give_equal_predictions() -> None:
    samples = {index: NEW[index] for index in range(8)}
    few = dict(list(OTHERS.items())[:4])
    first, second = (fit(ARCHS, few, samples).predict(ARCHS[:30]) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_references_may_have_holes_and_be_a_matrix() -> None:
    matrix = np.stack(list(OTHERS.values()), axis=1)
    matrix[::3, 0] = np.nan
    matrix[:, 1] = np.nan
    median, _, _ = fit(ARCHS, matrix, {index: NEW[index] for index in range(15)}).predict(ARCHS)
    assert spearmanr(median, NEW).statistic > 0.95


@pytest.mark.parametrize("nothing", [None, {}, np.zeros((NETWORKS, 0))])
def test_without_any_reference_device_samples_alone_predict(nothing: object) -> None:
    median, low, high = fit(ARCHS, nothing, {i: NEW[i] for i in range(40)}).predict(ARCHS)  # type: ignore[arg-type]
    assert spearmanr(median, NEW).statistic > 0.9
    assert np.all(low < high)


def test_one_sample_gives_the_scale(population: Population) -> None:
    median, low, high = fit(ARCHS, None, {0: NEW[0]}, population=population).predict(ARCHS)
    assert np.mean(np.abs(median / NEW - 1)) < 0.3
    assert np.all(low < high)


def test_rows_of_features_are_predicted_too() -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(10, 500, (200, 3))
    others = {str(i): rows @ rng.uniform(0.01, 0.1, 3) + 2 for i in range(4)}
    truth = rows @ np.array([0.03, 0.09, 0.02]) + 4
    median, _, _ = fit(rows, others, {index: truth[index] for index in range(10)}).predict(rows)
    assert np.mean(np.abs(median / truth - 1) < 0.1) > 0.95


def test_measurements_in_whole_milliseconds_are_recognised(population: Population) -> None:
    rounded = {index: float(round(NEW[index])) for index in range(12)}
    assert fit(ARCHS, None, rounded, population=population).step_ms == 1.0
    assert fit(ARCHS, None, {i: NEW[i] for i in range(12)}, population=population).step_ms == 0.0


def test_one_wild_measurement_does_not_spoil_the_fit(population: Population) -> None:
    samples = {index: NEW[index] for index in range(25)}
    samples[3] *= 3
    median, _, _ = fit(ARCHS, None, samples, population=population).predict(ARCHS)
    assert spearmanr(median, NEW).statistic > 0.97


def test_the_choice_is_distinct_deterministic_and_leaves_out_what_is_measured(population: Population) -> None:
    first = choose_samples(ARCHS, None, 12, population=population)
    assert first == choose_samples(ARCHS, None, 12, population=population)
    assert len(set(first)) == 12
    assert not set(first[:4]) & set(choose_samples(ARCHS, None, 12, population=population, measured=first[:4]))


def test_the_next_sample_is_a_new_one(population: Population, predictor: LatencyPredictor) -> None:
    samples = {index: NEW[index] for index in choose_samples(ARCHS, None, 10, population=population)}
    assert next_sample(predictor, samples) not in samples


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({}, "at least one measurement"),
        ({NETWORKS: 1.0}, f"{NETWORKS} is not the index"),
        ({0: 0.0}, "positive number of ms, got 0.0"),
        ({0: float("nan")}, "positive number"),
        ([1, 2, 3], "mapping of network index to ms"),
    ],
)
def test_samples_that_cannot_be_are_refused(population: Population, samples: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(ARCHS, None, samples, population=population)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, NETWORKS + 1])
def test_an_impossible_count_is_refused(population: Population, count: int) -> None:
    with pytest.raises(UserError, match="expected 1 to 300"):
        choose_samples(ARCHS, None, count, population=population)


def test_a_level_that_is_no_share_and_another_form_are_refused(predictor: LatencyPredictor) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        predictor.predict(ARCHS, level=90)
    with pytest.raises(UserError, match="at most 5 operations"):
        predictor.predict([[0] * 6])


@pytest.mark.parametrize("references", [np.zeros((3, 2)), {"a": [1.0]}, {"a": {999: 1.0}}, "abc"])
def test_references_of_another_shape_are_refused(references: object) -> None:
    with pytest.raises(UserError, match="reference_latencies"):
        learn(ARCHS, references)  # type: ignore[arg-type]
