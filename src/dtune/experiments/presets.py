"""What the paper ran, by method, dataset and scale.

Scale `paper` is the page: `tables` has its Tables 5, 6 and 7, `baselines` and `guided` what it compares with. Scale
`small` learns in minutes on a CPU, and `small` lists each of its departures.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import tyro

from dtune.algorithms.grpo import GRPOConfig
from dtune.algorithms.iql import IQLConfig
from dtune.algorithms.odt import ODTConfig
from dtune.algorithms.odt_td3 import ODTTD3Config
from dtune.algorithms.ppo import PPOConfig
from dtune.algorithms.pretrained import PretrainedConfig
from dtune.algorithms.q_guided import QGuidedConfig
from dtune.algorithms.supervised import SupervisedConfig
from dtune.checks import above_zero, finite
from dtune.envs.sources import source
from dtune.envs.tasks import DATASETS
from dtune.errors import ConfigError, meant
from dtune.experiments import baselines, guided, small
from dtune.experiments.loop import Clock
from dtune.experiments.tables import TABLE_6, TABLE_7, ModelConfig

__all__ = [
    "METHODS", "TABLE_6", "TABLE_7", "Architecture", "FinetuneConfig", "ModelConfig", "PretrainConfig", "Scale",
    "finetuning", "pretraining",
]  # fmt: skip

Scale = Literal["paper", "small"]
Architecture = Literal["dt", "reinformer"]
Precision = Literal["highest", "high", "medium"]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A pretraining run."""

    dataset: tyro.conf.Fixed[str]
    """Name of the dataset."""
    seed: int = 0
    """Of the one generator everything random is drawn from."""
    iterations: int = 20
    """Iterations of `algorithm.updates_per_iteration` gradient steps."""
    random_episodes: int = 1000
    """Episodes recorded where the dataset is a random one and no file is given."""
    architecture: tyro.conf.Fixed[Architecture] = "dt"
    """Decision transformer or Reinformer (Fig. 4a)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Size of the network."""
    algorithm: SupervisedConfig = field(default_factory=SupervisedConfig)
    """How it is fitted."""
    return_to_go: float = 7200.0
    """Return asked for when the result is evaluated, in environment reward units."""
    evaluation_episodes: int = 20
    """Episodes the result is evaluated on, with mean actions."""
    threads: int = 1
    """CPU threads for the physics, and for walks of a large network. Results do not depend on it."""
    network_threads: int = 1
    """CPU threads for the network. Small networks are slower with more than one."""
    device: str = "cpu"
    """Where the networks are: `cpu`, or a GPU, `cuda` or `cuda:1`. The physics and all else stay on the CPU."""
    matmul_precision: Precision = "highest"
    """PyTorch's switch for products of float32: `high` lets a GPU round their factors to TF32, `medium` a CPU that
    can to bfloat16. What it gains was not measured; walks and updates round alike, so ratios stay near 1."""

    def __post_init__(self) -> None:
        finite(self)
        _check_counts(self, "random_episodes", "evaluation_episodes", "threads", "network_threads")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A finetuning run."""

    dataset: tyro.conf.Fixed[str]
    """Name of the dataset the policy was pretrained on; it decides the task."""
    seed: int = 0
    """Of the one generator everything random is drawn from."""
    iterations: int = 500
    """Iterations of the algorithm, T. A learning rate that falls does so over the update's `decay_updates` gradient
    steps, however many iterations there are."""
    time_limit: float | None = None
    """Seconds of training after which the run ends, if `iterations` do not end it before; evaluations do not count,
    and the pieces of a continued run add up. The iteration that passes it is the last, so how many there are depends
    on the machine, and with it what comes out."""
    clock: Clock = "wall"
    """What counts seconds, for `time_limit` and in the record: `wall`, or `processor`: the time that all threads of
    the run's process work, so that other work on the machine takes nothing from a run."""
    algorithm: GRPOConfig | PPOConfig | QGuidedConfig | ODTConfig | ODTTD3Config | IQLConfig | PretrainedConfig
    """Which method, and its hyperparameters."""
    evaluate_every: int = 10
    """Iterations between evaluations; the last iteration is always evaluated."""
    evaluation_episodes: int = 20
    """Episodes an evaluation, with mean actions, asking for the algorithm's `return_to_go`."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; the most that a power cut loses."""
    evaluate_seconds: float | None = None
    """Seconds of training between evaluations, each with a checkpoint, in place of those two."""
    threads: int = 1
    """CPU threads for the physics, and for walks of a large network. Results do not depend on it."""
    network_threads: int = 1
    """CPU threads for the network. Small networks are slower with more than one. A pretraining that comes first has
    one: `dtune pretrain` before it takes a number of its own."""
    device: str = "cpu"
    """Where the networks are: `cpu`, or a GPU, `cuda` or `cuda:1`. The physics and all else stay on the CPU."""
    matmul_precision: Precision = "highest"
    """PyTorch's switch for products of float32: `high` lets a GPU round their factors to TF32, `medium` a CPU that
    can to bfloat16. What it gains was not measured; walks and updates round alike, so ratios stay near 1."""

    def __post_init__(self) -> None:
        finite(self)
        names = ("evaluate_every", "evaluation_episodes", "checkpoint_every", "threads", "network_threads")
        _check_counts(self, *names)
        above_zero(self, *(name for name in ("evaluate_seconds", "time_limit") if getattr(self, name) is not None))


def _check_counts(config: PretrainConfig | FinetuneConfig, *names: str) -> None:
    """Refuses counts below 1, a negative number of iterations, and seeds the generator does not take."""
    for name, least in (("iterations", 0), *((name, 1) for name in names)):
        if getattr(config, name) < least:
            raise ConfigError(f"{name} must be at least {least}, got {getattr(config, name)}")
    if not 0 <= config.seed < 2**63:
        raise ConfigError(f"seed must be in [0, 2^63), got {config.seed}")


# --- Fig. 4a: Reinformer (Zhuang et al., 2024), with its authors' sizes and pretraining ------------------------------

REINFORMER_MODEL = ModelConfig(layers=4, heads=8, width=256)
REINFORMER_CONTEXT = 5
REINFORMER_PRETRAINING = SupervisedConfig(
    context_length=REINFORMER_CONTEXT, learning_rate=1e-4, warmup_updates=5_000, grad_norm_clip=0.25
)

_RANDOM_EPISODES = {"hopper": 44_000, "walker2d": 46_000, "ant": 5_500}
"""Episodes of random actions that make about the million steps of D4RL's random datasets, by task."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """The presets of a method."""

    paper: Callable[[str], Any]
    """Gives its config for a dataset."""
    small: Callable[[Any, int, bool], Any]
    """Makes of that the config of so many iterations at scale `small`; whether its data are random."""
    iterations: int = 500
    """At scale `paper`."""


METHODS = {
    "grpo": Method(paper=lambda dataset: TABLE_6[dataset][1], small=small.grpo),
    "ppo": Method(paper=lambda dataset: TABLE_7[dataset][1], small=small.ppo),
    "q_guided": Method(
        paper=lambda dataset: guided.q_guided(dataset, TABLE_6[dataset][1]),
        small=lambda config, iterations, _: guided.small_q_guided(config, iterations),
    ),
    "odt": Method(paper=baselines.odt, small=lambda config, _, random: small.odt(config, random)),
    "odt_td3": Method(
        paper=guided.odt_td3, small=lambda config, _, random: guided.small_odt_td3(config, random, small.odt)
    ),
    "iql": Method(paper=baselines.iql, small=lambda config, *_: baselines.small_iql(config)),
    "dt": Method(paper=baselines.pretrained, small=lambda config, *_: config, iterations=0),
}


def pretraining(dataset: str, scale: Scale, seed: int = 0, architecture: Architecture = "dt") -> PretrainConfig:
    """The pretraining run of a dataset.

    Raises:
        ConfigError: if there is no preset for it.
    """
    c_offline, grpo = _row(TABLE_6, dataset)
    task = DATASETS[dataset]
    reinformer = architecture == "reinformer"
    page = baselines.TABLE_9[task]
    algorithm = SupervisedConfig(context_length=c_offline, learning_rate=page.update.learning_rate)
    if reinformer:
        algorithm = replace(REINFORMER_PRETRAINING, batch_size=256 if task == "hopper" else 128)
    updates = 50_000 if reinformer else page.pretraining_updates
    config = PretrainConfig(
        dataset=dataset,
        seed=seed,
        iterations=updates // algorithm.updates_per_iteration,
        random_episodes=_RANDOM_EPISODES.get(task, 1000) if scale == "paper" else 1000,
        architecture=architecture,
        model=REINFORMER_MODEL if reinformer else ModelConfig(),
        algorithm=algorithm,
        return_to_go=grpo.return_to_go,
    )
    if scale == "paper":
        return config
    random = source(dataset).random
    iterations = small.pretraining_iterations(page.pretraining_updates, random)
    return replace(config, model=small.MODEL, algorithm=small.pretraining(algorithm, random), iterations=iterations)


def finetuning(
    method: str, dataset: str, scale: Scale, architecture: Architecture = "dt", *, iterations: int | None = None
) -> FinetuneConfig:
    """The finetuning run of a method on a dataset; a Reinformer keeps its own context, and nothing else differs.

    Args:
        method: a key of `METHODS`.
        dataset: a row of Table 6.
        scale: the page, or a CPU's.
        architecture: of the policy.
        iterations: how many; the preset's where None. At scale `small` learning rates fall over as many.

    Raises:
        ConfigError: if there is no such method, or no preset for the dataset.
    """
    if method not in METHODS:
        raise ConfigError(
            f"there is no method {method!r}{meant(method, METHODS)}: say METHOD/DATASET, as grpo/hopper-random-v2, with"
            f" one of {', '.join(METHODS)}"
        )
    _row(TABLE_6, dataset)
    chosen = METHODS[method]
    config = chosen.paper(dataset)
    if architecture == "reinformer" and "context_length" in vars(config):
        config = replace(config, context_length=REINFORMER_CONTEXT)
    if scale == "paper":
        count = chosen.iterations if iterations is None else iterations
        return FinetuneConfig(dataset=dataset, algorithm=config, iterations=count)
    count = small.ITERATIONS[method] if iterations is None else iterations
    return FinetuneConfig(
        dataset=dataset,
        algorithm=chosen.small(config, count, source(dataset).random),
        iterations=count,
        evaluate_every=small.EVALUATE_EVERY.get(method, 20),
        checkpoint_every=small.EVALUATE_EVERY.get(method, 20),
        threads=small.THREADS.get(method, 1),
    )


def _row(table: dict, dataset: str) -> tuple:
    if dataset not in table:
        raise ConfigError(
            f"there is no preset for {dataset!r}{meant(dataset, table)}: choose one of {', '.join(table)}"
        )
    return table[dataset]
