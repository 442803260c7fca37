"""Cellular automata: the fixed filters, the world without edges, who acts, and a rule that learns."""

import torch
from torch import nn

from miniai.base.seeds import make_generator
from miniai.nn.cellular import FILTERS, CellularAutomaton, CellularConfig, normalise_gradients, wounded

CONFIG = CellularConfig(channels=4, hidden=8)
WORLD = torch.randn(2, 4, 6, 5, generator=make_generator(1))


def lively() -> CellularAutomaton:
    torch.manual_seed(0)
    automaton = CellularAutomaton(CONFIG)
    nn.init.normal_(automaton.out.weight, std=0.1)
    return automaton


def test_perception_is_every_neighbour_by_its_weight_with_edges_that_meet() -> None:
    found = CellularAutomaton(CONFIG).perceive(WORLD)
    assert torch.equal(found[:, :4], WORLD)
    for k, rows in enumerate(FILTERS):
        expected = sum(rows[i][j] * WORLD.roll((1 - i, 1 - j), dims=(2, 3)) for i in range(3) for j in range(3))
        seen = found[:, 4:].unflatten(1, (4, len(FILTERS)))[:, :, k]
        torch.testing.assert_close(seen, expected)


def test_a_uniform_world_sees_no_slope() -> None:
    found = CellularAutomaton(CONFIG).perceive(torch.full((1, 4, 3, 3), 0.7))
    assert found[:, 4:].abs().max() < 1e-6


def test_the_rule_does_not_know_places() -> None:
    automaton = lively()
    everyone = torch.ones(2, 1, 6, 5, dtype=torch.bool)
    moved = automaton.step(WORLD.roll((2, 3), dims=(2, 3)), everyone)
    torch.testing.assert_close(moved, automaton.step(WORLD, everyone).roll((2, 3), dims=(2, 3)))


def test_only_those_who_act_change_and_about_half_do() -> None:
    automaton = lively()
    world = torch.randn(1, 4, 64, 64, generator=make_generator(2))
    after = automaton(world, 1, make_generator(3))
    changed = (after != world).any(dim=1).float().mean().item()
    assert 0.47 < changed < 0.53
    assert torch.equal(after, automaton(world, 1, make_generator(3)))
    assert not torch.equal(after, automaton(world, 1, make_generator(4)))
    nobody = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    assert torch.equal(automaton.step(world, nobody), world)


def test_gradients_through_many_steps_become_directions() -> None:
    automaton = lively()
    automaton(WORLD, 30, make_generator(5)).square().mean().backward()
    before = [weight.grad.clone() for weight in automaton.parameters() if weight.grad is not None]
    assert len(before) == 3
    normalise_gradients(automaton)
    for old, weight in zip(before, automaton.parameters(), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad.norm(), torch.tensor(1.0))
        torch.testing.assert_close(weight.grad * old.norm(), old, rtol=1e-4, atol=1e-6)


def test_a_wound_is_a_disc_of_its_size_and_nothing_else() -> None:
    world = torch.ones(3, 4, 40, 40)
    after = wounded(world, make_generator(6), share=0.5)
    emptied = (after == 0).all(dim=1)
    assert torch.equal((after == 0).any(dim=1), emptied)
    assert ((emptied.sum(dim=(1, 2)) - torch.pi * 10**2).abs() < 15).all()
    assert len({tuple(one.flatten().tolist()) for one in emptied}) == 3  # each world has its own place
