"""Random numbers: even, independent, repeatable, and not repeated by a forked process."""

import math
from multiprocessing import get_context

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scratch_oracle import few, seeds

from miniai.scratch.rng import FACTORS, PRIMES, Rng, chi_square, serial_correlation
from miniai.scratch.statistics import histogram
from miniai.scratch.tensor import Tensor


def test_the_numbers_are_those_of_pythons_own_wichmann_hill() -> None:
    """The standard library's generator until Python 2.2 stood in random.py as these lines."""
    rng = Rng(0)
    x, y, z = rng.state
    for _ in range(100):
        x, y, z = 171 * x % 30269, 172 * y % 30307, 170 * z % 30323
        assert rng.random() == (x / 30269.0 + y / 30307.0 + z / 30323.0) % 1.0


def test_the_period_of_each_part_is_all_of_its_numbers() -> None:
    """A factor that is a primitive root of its prime visits every number but 0 before it comes back."""
    for prime, factor in zip(PRIMES, FACTORS, strict=True):
        order = prime - 1
        divisors = {q for q in range(2, order) if order % q == 0 and all(q % d for d in range(2, math.isqrt(q) + 1))}
        assert pow(factor, order, prime) == 1
        assert all(pow(factor, order // q, prime) != 1 for q in divisors)


@few
@given(seeds)
def test_the_same_seed_gives_the_same_numbers_and_the_state_restores_them(seed: int) -> None:
    rng, twin = Rng(seed), Rng(seed)
    assert rng.uniform(3).tolist() == twin.uniform(3).tolist()
    kept = rng.state
    numbers = rng.normal(2, 3).tolist()
    rng.state = kept
    assert rng.normal(2, 3).tolist() == numbers
    assert Rng(seed + 1).random() != Rng(seed).random()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_uniform_numbers_fall_evenly_by_the_chi_square_test(seed: int) -> None:
    counts = histogram(Rng(seed).uniform(20_000), 50, 0, 1).tolist()
    assert chi_square(counts) == pytest.approx(stats.chisquare(counts).statistic)
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


def test_the_chi_square_test_finds_numbers_that_are_not_even() -> None:
    squares = Rng(0).uniform(20_000) ** 2
    assert stats.chisquare(histogram(squares, 50, 0, 1).tolist()).pvalue < 1e-6


@pytest.mark.parametrize("lag", [1, 2, 7])
def test_numbers_do_not_depend_on_those_before(lag: int) -> None:
    assert abs(serial_correlation(Rng(5).uniform(20_000), lag)) < 3 / math.sqrt(20_000)


def test_the_serial_test_finds_numbers_that_do_depend() -> None:
    x = Rng(5).uniform(2_000)
    assert serial_correlation(x[1:] + x[:-1]) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match="lag must be from 1 to 1999, got 0"):
        serial_correlation(x, 0)


def test_normal_numbers_are_normal_by_kolmogorov_and_smirnov() -> None:
    x = Rng(3).normal(100, 101, mean=2, std=3)
    assert x.shape == (100, 101)
    assert stats.kstest(list(x.flat()), "norm", args=(2, 3)).pvalue > 1e-3


@few
@given(seeds, st.integers(0, 20))
def test_a_permutation_loses_nothing(seed: int, n: int) -> None:
    assert sorted(Rng(seed).permutation(n)) == list(range(n))


def test_every_permutation_is_as_likely_as_any_other() -> None:
    rng, counts = Rng(1), {}
    for _ in range(6_000):
        order = tuple(rng.permutation(3))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_shuffled_rows_stay_whole() -> None:
    x = Tensor([[i, 10 * i] for i in range(8)])
    shuffled = Rng(0).shuffle(x)
    assert shuffled.tolist() != x.tolist()
    assert sorted(shuffled.tolist()) == x.tolist()


def draw(rng: Rng, queue) -> None:
    queue.put(rng.uniform(3).tolist())


def draws_in_forked_processes(rngs: list[Rng]) -> list[list[float]]:
    context = get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=draw, args=(rng, queue)) for rng in rngs]
    for process in processes:
        process.start()
    drawn = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return drawn


def test_forked_processes_repeat_one_another_unless_each_has_a_stream() -> None:
    """The hazard: fork copies the generator's state, so every worker adds 'random' noise that is the same."""
    rng = Rng(42)
    first, second = draws_in_forked_processes([rng, rng])
    assert first == second == Rng(42).uniform(3).tolist()

    streams = [rng.stream(worker) for worker in range(2)]
    first, second = draws_in_forked_processes(streams)
    assert first != second
    assert sorted([first, second]) == sorted(Rng(42, worker).uniform(3).tolist() for worker in range(2))


def test_a_stream_does_not_depend_on_what_was_drawn_before() -> None:
    rng = Rng(7)
    before = rng.stream(1, 2).random()
    rng.uniform(100)
    assert rng.stream(1, 2).random() == before != rng.stream(2, 1).random()
    assert rng.stream(1).stream(2).random() == before


def test_an_integer_needs_a_range() -> None:
    assert {Rng(i).integer(3) for i in range(50)} == {0, 1, 2}
    with pytest.raises(ValueError, match="n of at least 1, got 0"):
        Rng(0).integer(0)
