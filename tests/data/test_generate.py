from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dtune.data.columns import make_dataset
from dtune.data.generate import record_random
from dtune.data.hdf5 import read_hdf5, write_hdf5
from dtune.errors import SimulatorError


class Outcome(NamedTuple):
    observations: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    faulty: Tensor


class Counter:
    """Episodes of a drawn length, observed as (serial number, step, length)."""

    observation_dim = 3
    action_dim = 2

    def __init__(self, horizon: int = 12, faulty: tuple[int, ...] = ()):
        self.horizon, self.faulty, self.started = horizon, torch.tensor(faulty), 0
        self.drawn: list[int] = []
        self.actions: list[Tensor] = []

    def _observe(self) -> Tensor:
        return torch.stack([self.serial, self.clock, self.length], dim=1).double()

    def reset(self, count: int, generator: torch.Generator) -> Tensor:
        self.serial = torch.arange(self.started, self.started + count)
        self.started += count
        self.clock = torch.zeros(count, dtype=torch.long)
        self.length = torch.randint(1, 2 * self.horizon, (count,), generator=generator)
        self.drawn += self.length.clamp(max=self.horizon).tolist()
        return self._observe()

    def step(self, actions: Tensor) -> Outcome:
        assert len(actions) == len(self.serial) > 0
        self.actions.append(actions)
        self.clock = self.clock + 1
        faulty = torch.isin(self.serial, self.faulty) & (self.clock == self.length.clamp(max=self.horizon))
        return Outcome(
            observations=self._observe(),
            rewards=(self.serial + self.clock / 100).double(),
            terminated=(self.clock == self.length) | faulty,
            truncated=self.clock >= self.horizon,
            faulty=faulty,
        )

    def keep(self, rows: Tensor) -> None:
        self.serial, self.clock, self.length = self.serial[rows], self.clock[rows], self.length[rows]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_episode_started_is_recorded_whole_and_in_order():
    simulator = Counter()
    columns = record_random(simulator, episodes=10, generator=seeded(), batch=4)
    dataset = make_dataset(columns, name="random")
    assert simulator.started == len(dataset) == 10
    assert dataset.lengths.tolist() == simulator.drawn
    assert dataset.observations[dataset.starts, 0].tolist() == list(range(10))
    for serial, rows in enumerate(dataset.observations.split(dataset.lengths.tolist())):
        assert (rows[:, 0] == serial).all()
        assert rows[:, 1].tolist() == list(range(len(rows)))
    torch.testing.assert_close(dataset.rewards, dataset.observations[:, 0] + (dataset.observations[:, 1] + 1) / 100)
    assert torch.equal(columns["next_observations"][:, 1], columns["observations"][:, 1] + 1)
    assert torch.equal(columns["next_observations"][:, 0], columns["observations"][:, 0])


def test_an_end_is_a_terminal_or_a_timeout():
    columns = record_random(Counter(horizon=6), episodes=60, generator=seeded(), batch=32)
    length, clock = columns["next_observations"][:, 2], columns["next_observations"][:, 1]
    assert torch.equal(columns["terminals"], clock == length)
    assert torch.equal(columns["timeouts"], (clock == 6) & (length > 6))
    assert columns["terminals"].any()
    assert columns["timeouts"].any()


def test_actions_are_even_in_minus_one_to_one_and_those_the_simulator_got():
    simulator = Counter()
    columns = record_random(simulator, episodes=600, generator=seeded(), batch=64)
    actions = columns["actions"]
    assert actions.abs().max() <= 1
    assert torch.histc(actions, 4, -1, 1).div(actions.numel()).tolist() == pytest.approx([0.25] * 4, abs=0.015)
    given = torch.cat(simulator.actions)
    assert torch.equal(actions.sort(0).values, given.sort(0).values)
    assert torch.equal(actions[0], given[0])


def test_the_same_generator_gives_the_same_recording():
    a, b, c = (record_random(Counter(), episodes=9, generator=seeded(seed), batch=4) for seed in (1, 1, 2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert a["actions"].shape != c["actions"].shape or not torch.equal(a["actions"], c["actions"])


def test_a_recording_survives_its_file(tmp_path):
    columns = record_random(Counter(), episodes=5, generator=seeded())
    write_hdf5(tmp_path / "random.hdf5", columns)
    dataset = read_hdf5(tmp_path / "random.hdf5")
    assert torch.equal(dataset.actions, columns["actions"])
    assert len(dataset) == 5


def test_episodes_whose_physics_failed_are_replaced():
    simulator = Counter(faulty=(0, 3))  # they outlive the others
    dataset = make_dataset(record_random(simulator, episodes=4, generator=seeded(), batch=4), name="random")
    assert dataset.observations[dataset.starts, 0].tolist() == [1, 2, 4, 5]


def test_a_simulator_whose_physics_always_fails_is_refused():
    with pytest.raises(SimulatorError, match="failed in every episode"):
        record_random(Counter(faulty=(0, 1)), episodes=2, generator=seeded())


def test_a_simulator_that_never_truncates_is_refused():
    class Endless(Counter):
        def step(self, actions: Tensor) -> Outcome:
            never = torch.zeros(len(self.serial), dtype=torch.bool)
            return super().step(actions)._replace(terminated=never, truncated=never)

    with pytest.raises(SimulatorError, match="horizon of 12"):
        record_random(Endless(), episodes=2, generator=seeded())
