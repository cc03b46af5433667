"""Every algorithm, small enough to learn on a point mass in seconds; and what it means that two are the same."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from pointmass import PointMass, TinyPolicy

from dtune.algorithms.grpo import GRPO, GRPOConfig
from dtune.algorithms.iql import IQL, IQLConfig, make_policy
from dtune.algorithms.odt import ODT, ODTConfig
from dtune.algorithms.odt_td3 import ODTTD3, ODTTD3Config
from dtune.algorithms.ppo import PPO, PPOConfig
from dtune.algorithms.q_guided import QGuidedConfig, QGuidedGRPO
from dtune.algorithms.supervised import Supervised, SupervisedConfig
from dtune.algorithms.td3 import CriticConfig
from dtune.algorithms.update import UpdateConfig
from dtune.data.datasets import Dataset
from dtune.data.steps import Steps
from dtune.envs.collect import collect_episodes
from dtune.experiments.encoding import encode
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.reinformer import Reinformer, ReinformerConfig

GOAL = -3.0
"""About what the best policy earns in an episode of 20 steps."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reinformer(context_length: int, *, seed: int) -> Reinformer:
    shape = ReinformerConfig(
        observation_dim=2, action_dim=2, context_length=context_length, layers=1, heads=2, width=32, return_scale=0.1,
        timesteps=24,
    )  # fmt: skip
    policy = Reinformer(shape, seeded(seed))
    with torch.no_grad():
        policy.log_std.fill_(-0.7)
    return policy


def decision_transformer(context_length: int, *, seed: int) -> DecisionTransformer:
    shape = DecisionTransformerConfig(
        observation_dim=2, action_dim=2, context_length=context_length, layers=1, heads=2, width=32, return_scale=10.0
    )
    policy = DecisionTransformer(shape, seeded(seed))
    policy.set_statistics(torch.tensor([0.1, -0.1]), torch.tensor([0.7, 0.5]))
    return policy


def grpo(
    context_length: int = 1,
    *,
    seed: int = 0,
    update: dict[str, Any] | None = None,
    policy: Callable[..., Any] = TinyPolicy,
    **changes: Any,
) -> GRPO:
    config = GRPOConfig(
        return_to_go=GOAL,
        context_length=context_length,
        episodes_per_iteration=2,
        replay_capacity=8,
        reset_trajectories=4,
        reset_points=2,
        group_size=GROUP,
        subtrajectory_length=LENGTH,
        lookahead_length=LOOKAHEAD,
        return_margin=0.0,
        subtrajectory_capacity=128,
        batch_size=32,
        update=replace(UpdateConfig(optimizer="adamw", learning_rate=3e-3, entropy_coef=1e-3), **(update or {})),
    )
    return GRPO(policy(context_length, seed=seed), replace(config, **changes), seeded(seed))


def ppo(
    context_length: int = 1,
    *,
    seed: int = 0,
    update: dict[str, Any] | None = None,
    policy: Callable[..., Any] = TinyPolicy,
    **changes: Any,
) -> PPO:
    config = PPOConfig(
        return_to_go=GOAL,
        context_length=context_length,
        episodes_per_iteration=8,
        replay_capacity=16,
        batch_size=64,
        updates_per_iteration=8,
        value_width=32,
        value_learning_rate=1e-2,
        update=replace(
            UpdateConfig(ratio="token", optimizer="adamw", learning_rate=3e-3, entropy_coef=1e-3), **(update or {})
        ),
    )
    return PPO(policy(context_length, seed=seed), replace(config, **changes), seeded(seed))


def supervised(
    context_length: int = 1, *, seed: int = 0, policy: Callable[..., Any] = TinyPolicy, **changes: Any
) -> Supervised:
    config = SupervisedConfig(
        context_length=context_length,
        optimizer="adamw",
        learning_rate=3e-3,
        warmup_updates=10,
        batch_size=32,
        updates_per_iteration=20,
        entropy_coef=1e-3,
    )
    return Supervised(policy(context_length, seed=seed), replace(config, **changes), walks_home(), seeded(seed))


def odt(
    context_length: int = 1,
    *,
    seed: int = 0,
    update: dict[str, Any] | None = None,
    policy: Callable[..., Any] = TinyPolicy,
    **changes: Any,
) -> ODT:
    config = ODTConfig(
        return_to_go=GOAL,
        context_length=context_length,
        replay_capacity=32,
        pretraining_updates=0,
        update=replace(supervised(context_length).config, **(update or {})),
    )
    return ODT(policy(context_length, seed=seed), replace(config, **changes), walks_home(), seeded(seed))


def iql(context_length: int = 1, *, seed: int = 0, **changes: Any) -> IQL:
    config = IQLConfig(
        learning_rate=3e-3, gamma=0.9, polyak=0.05, batch_size=32, width=32, replay_capacity=10_000,
        pretraining_updates=0, min_steps=40, reward_scaling="none",
    )  # fmt: skip
    config, generator = replace(config, **changes), seeded(seed)
    return IQL(make_policy(config, 2, 2, seeded(seed)), config, walks_home(), generator)


CRITIC = CriticConfig(width=32, learning_rate=3e-3, gamma=0.9, polyak=0.02, offline_updates=200)


def q_guided(
    context_length: int = 1,
    *,
    seed: int = 0,
    update: dict[str, Any] | None = None,
    policy: Callable[..., Any] = TinyPolicy,
    **changes: Any,
) -> QGuidedGRPO:
    config = QGuidedConfig(
        return_to_go=GOAL,
        context_length=context_length,
        episodes_per_iteration=4,
        replay_capacity=16,
        action_capacity=512,
        batch_size=128,
        critic=CRITIC,
        critic_updates=20,
        critic_batch_size=64,
        critic_replay_capacity=64,
        update=replace(
            UpdateConfig(ratio="token", optimizer="adamw", learning_rate=3e-3, entropy_coef=1e-3), **(update or {})
        ),
    )
    return QGuidedGRPO(policy(context_length, seed=seed), replace(config, **changes), walks_home(), seeded(seed))


def odt_td3(
    context_length: int = 1,
    *,
    seed: int = 0,
    update: dict[str, Any] | None = None,
    policy: Callable[..., Any] = TinyPolicy,
    **changes: Any,
) -> ODTTD3:
    config = ODTTD3Config(
        return_to_go=GOAL,
        context_length=context_length,
        episodes_per_iteration=2,
        replay_capacity=32,
        pretraining_updates=0,
        update=replace(supervised(context_length).config, **(update or {})),
        critic=CRITIC,
    )
    return ODTTD3(policy(context_length, seed=seed), replace(config, **changes), walks_home(), seeded(seed))


@dataclass(frozen=True)
class Learner:
    """An algorithm for the battery."""

    make: Callable[..., Any]  # (context_length, *, seed, **changes of its config) -> the algorithm
    iterations: int  # to reach -6 on the point mass
    # settings with which an iteration takes so many walks that one broken is not too many; none if it never walks
    many_walks: dict[str, Any] = field(default_factory=dict)
    updates: str | None = None  # the part of its config that says how the policy is moved, where it is not the whole
    constrained: bool = True  # keeps its entropy above a bound
    remembers: bool = True  # takes policies that read more than the present step, and any optimizer

    def with_optimizer(self, optimizer: str) -> dict[str, Any]:
        """The setting that chooses it."""
        if not self.remembers:
            return {}
        return {self.updates: {"optimizer": optimizer}} if self.updates else {"optimizer": optimizer}

    def __call__(self, *args: Any, **changes: Any) -> Any:
        return self.make(*args, **changes)


LEARNERS = {
    "grpo": Learner(grpo, 20, {"episodes_per_iteration": 8, "reset_trajectories": 64}, "update"),
    "ppo": Learner(ppo, 18, {"episodes_per_iteration": 240}, "update"),
    "supervised": Learner(supervised, 5),
    "odt": Learner(odt, 8, {"episodes_per_iteration": 240}, "update"),
    "iql": Learner(iql, 8, {"episodes_at_once": 240, "updates_per_step": 0}, constrained=False, remembers=False),
    "q_guided": Learner(q_guided, 9, {"episodes_per_iteration": 240}, "update"),
    "odt_td3": Learner(odt_td3, 8, {"episodes_per_iteration": 240}, "update", constrained=False),
    "grpo of a reinformer": Learner(
        partial(grpo, policy=reinformer), 30, {"episodes_per_iteration": 8, "reset_trajectories": 64}, "update"
    ),
    "supervised of a reinformer": Learner(partial(supervised, policy=reinformer), 8),
}


@dataclass
class Walk:
    """What a world saw of one walk of many rows: `[rows, steps, ...]`, NaN after a row's end."""

    resumed: bool  # started by `restore`, not by `reset`
    starts: torch.Tensor  # snapshots: position and clock
    taken: list[torch.Tensor] = field(default_factory=list)

    def _stack(self, part: slice) -> torch.Tensor:
        return torch.stack(self.taken, 1)[..., part]

    @property
    def observations(self) -> torch.Tensor:
        """Before each step."""
        return self._stack(slice(0, 2))

    @property
    def actions(self) -> torch.Tensor:
        return self._stack(slice(2, 4))

    @property
    def rewards(self) -> torch.Tensor:
        return self._stack(slice(4, 5)).squeeze(-1)

    @property
    def steps(self) -> torch.Tensor:
        """Rows that walked, at each step."""
        return (~self.rewards.isnan()).sum(0)


class Witness(PointMass):
    """A point mass that writes down all that happens in it: what to hold an algorithm's word against."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.walks: list[Walk] = []

    def reset(self, count, generator):
        observations = super().reset(count, generator)
        self.walks.append(Walk(False, torch.from_numpy(self.snapshot())))
        return observations

    def restore(self, snapshots):
        observations = super().restore(snapshots)
        self.walks.append(Walk(True, torch.from_numpy(self.snapshot())))
        return observations

    def step(self, actions):
        walk = self.walks[-1]
        seen = torch.full((len(walk.starts), 5), torch.nan, dtype=torch.float64)
        seen[self.row, :2], seen[self.row, 2:4] = self.position, actions.double()
        outcome = super().step(actions)
        seen[self.row, 4] = outcome.rewards
        walk.taken.append(seen)
        return outcome

    @property
    def collected(self) -> list[Walk]:
        return [walk for walk in self.walks if not walk.resumed]

    @property
    def grown(self) -> list[Walk]:
        return [walk for walk in self.walks if walk.resumed]


def walks_home(episodes: int = 16, horizon: int = 20) -> Dataset:
    """Recorded episodes of somebody who goes straight to the origin, with a shaking hand."""
    generator = seeded(5)
    position = 2 * torch.rand(episodes, 2, generator=generator) - 1
    observations, actions, rewards = [], [], []
    for _ in range(horizon):
        action = (-3 * position + 0.1 * torch.randn(episodes, 2, generator=generator)).tanh()
        observations.append(position)
        actions.append(action)
        position = position + 0.2 * action
        rewards.append(-position.norm(dim=1))
    return Dataset(
        observations=torch.stack(observations, 1).flatten(0, 1),
        actions=torch.stack(actions, 1).flatten(0, 1),
        rewards=torch.stack(rewards, 1).flatten(),
        terminated=torch.zeros(episodes * horizon, dtype=torch.bool),
        lengths=torch.full((episodes,), horizon),
        name="walks home",
    )


def mean_return(policy: Any, episodes: int = 64) -> float:
    """What the policy earns an episode with mean actions."""
    walked, _ = collect_episodes(policy, PointMass(), episodes, GOAL, seeded(99), sample=False)
    return walked.returns.mean().item()


def parameters(policy: Any) -> torch.Tensor:
    """All of them in a row, copied."""
    return torch.cat([p.detach().flatten() for p in policy.parameters()]).clone()


def same_state(a: Any, b: Any) -> bool:
    """Whether two `state_dict`s are the same to the last bit."""
    (first, ours), (second, theirs) = encode(a), encode(b)
    return first == second and ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


# --- what an iteration of GRPO did, by the world's account -------------------------------------------------------

LENGTH, LOOKAHEAD, GROUP = 3, 5, 4
"""Of `grpo` above: steps of a sub-trajectory and of its lookahead, members of a group."""


def own_steps(algorithm: GRPO) -> Steps:
    """What is to be learned from, without the context before it."""
    rows = {part.name: algorithm.buffer.rows[part.name] for part in fields(Steps)}
    return Steps(**rows).slice_time(algorithm.config.context_length - 1)


def groups(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, GROUP, *values.shape[1:])


def returns_seen(simulator: Witness, gamma: float, counted: int = LENGTH + LOOKAHEAD) -> torch.Tensor:
    """Discounted returns of the last walk from reset points, by the world's own account: `[groups, group]`."""
    rewards = simulator.grown[-1].rewards[:, :counted].nan_to_num(0.0)
    return groups(sum(gamma**j * rewards[:, j] for j in range(rewards.shape[1])))


def standardised(returns: torch.Tensor) -> torch.Tensor:
    return (returns - returns.mean(1, keepdim=True)) / returns.std(1, keepdim=True)


def points_of(algorithm: GRPO) -> dict[tuple[float, ...], tuple[int, int]]:
    """Episode and step in the replay of every snapshot there."""
    replay = algorithm.replay.rows
    return {
        tuple(replay["snapshots"][row, step].tolist()): (row, step) for row, step in replay["mask"].nonzero().tolist()
    }


# --- what the updates of PPO were given ---------------------------------------------------------------------------


@dataclass
class Batch:
    """What one policy update was given, and what it said."""

    steps: Steps
    advantages: torch.Tensor
    fresh: torch.Tensor | None
    metrics: dict[str, float]

    def own(self, context_length: int) -> Steps:
        """The actions learned from, without their history."""
        return self.steps.slice_time(context_length - 1)


def spied(algorithm: PPO) -> list[Batch]:
    """The batches of every update from now on."""
    seen, step = [], algorithm.update.step

    def spy(steps, advantages, generator, fresh, part):
        metrics = step(steps, advantages, generator, fresh, part)
        seen.append(Batch(steps, advantages, fresh, metrics))
        return metrics

    algorithm.update.step = spy
    return seen
