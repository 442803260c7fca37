"""Candidates are fair, perfect features score 1, blind ones score chance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai.evaluate.retrieval import (
    classify,
    draw_candidates,
    fit_classifier,
    largest_k,
    retrieval_share,
    standard_error,
)

CAPTIONS = [f"thing {i % 60}, style {i % 3}" for i in range(90)]
STYLES = [f"style {i % 3}" for i in range(90)]


def test_candidates_have_their_own_caption_first_and_no_text_twice() -> None:
    candidates = draw_candidates(CAPTIONS, 32)
    assert candidates.shape == (90, 32)
    assert candidates[:, 0].tolist() == list(range(90))
    for row in candidates.tolist():
        assert len({CAPTIONS[i] for i in row}) == 32


def test_candidates_of_a_group_stay_in_it() -> None:
    for i, row in enumerate(draw_candidates(CAPTIONS, 12, groups=STYLES).tolist()):
        assert {STYLES[j] for j in row} == {STYLES[i]}


def test_candidates_depend_on_the_seed_alone() -> None:
    assert draw_candidates(CAPTIONS, 8, seed=1).equal(draw_candidates(CAPTIONS, 8, seed=1))
    assert not draw_candidates(CAPTIONS, 8, seed=1).equal(draw_candidates(CAPTIONS, 8, seed=2))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xy")), min_size=1, max_size=12), st.booleans())
def test_largest_k_is_the_most_that_can_be_drawn(pairs: list[tuple[str, str]], grouped: bool) -> None:
    captions = [text for text, _ in pairs]
    groups = [group for _, group in pairs] if grouped else None
    k = largest_k(captions, 32, groups)
    assert draw_candidates(captions, k, groups=groups).shape == (len(pairs), k)
    with pytest.raises(ValueError, match="fewer"):
        draw_candidates(captions, k + 1, groups=groups)


def test_features_equal_to_their_captions_are_always_right_and_opposite_ones_never() -> None:
    texts = torch.randn(90, 16, generator=torch.Generator().manual_seed(0))
    candidates = draw_candidates([str(i) for i in range(90)], 32)
    assert retrieval_share(7 * texts, texts, candidates) == 1.0
    assert retrieval_share(-texts, texts, candidates) == 0.0


def test_features_that_are_all_alike_score_chance() -> None:
    candidates = draw_candidates([str(i) for i in range(90)], 32)
    same = torch.ones(90, 4)
    assert retrieval_share(same, same, candidates) == pytest.approx(1 / 32)


def test_features_that_know_nothing_score_chance_within_the_standard_error() -> None:
    n, k = 1500, 8
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(2, n, 32, generator=generator)
    share = retrieval_share(images, texts, draw_candidates([str(i) for i in range(n)], k))
    assert share == pytest.approx(1 / k, abs=4 * standard_error(1 / k, n))


def test_share_counts_pictures() -> None:
    texts = torch.eye(4)
    images = texts[[0, 1, 3, 2]]
    assert retrieval_share(images, texts, draw_candidates(list("abcd"), 4)) == 0.5


def test_standard_error_is_the_binomials() -> None:
    draws = torch.distributions.Binomial(100, torch.tensor(0.3)).sample((20_000,)) / 100
    assert standard_error(0.3, 100) == pytest.approx(float(draws.std()), rel=0.05)


def test_linear_classifier_finds_classes_that_a_plane_parts() -> None:
    generator = torch.Generator().manual_seed(2)
    centres = torch.randn(3, 8, generator=generator) * 4
    classes = torch.randint(3, (300,), generator=generator)
    features = centres[classes] + torch.randn(300, 8, generator=generator)
    weights = fit_classifier(features[:200], classes[:200], 3)
    assert weights.shape == (9, 3)
    assert (classify(features[200:], weights) == classes[200:]).float().mean() > 0.95


def test_linear_classifier_is_torchs_least_squares_when_the_penalty_vanishes() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    classes = torch.randint(2, (50,), generator=generator)
    rows = torch.cat([features, torch.ones(50, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(rows, torch.nn.functional.one_hot(classes).double()).solution
    assert torch.allclose(fit_classifier(features, classes, 2, ridge=1e-12), expected, atol=1e-7)
