"""Pretraining, finetuning and evaluating: presets and files on one side, the loop on the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch

from dtune import parallel
from dtune.algorithms.supervised import Supervised
from dtune.data.datasets import Dataset, check_fits, drop_lowest_return
from dtune.envs.simulator import Simulator, check_members
from dtune.envs.sources import source
from dtune.envs.tasks import TaskInfo, make_simulator, task_info
from dtune.errors import ConfigError
from dtune.experiments import together
from dtune.experiments.evaluation import Evaluation
from dtune.experiments.folder import check_config, locked, plain, refuse_begun, settle_config, settle_source, write_meta
from dtune.experiments.loading import find, load_dataset
from dtune.experiments.loop import Algorithm, Schedule, train
from dtune.experiments.methods import ALGORITHMS, Method
from dtune.experiments.mirrors import prepare
from dtune.experiments.policies import KINDS, StoredPolicy, describe, find_checkpoint, load_policy, read_about
from dtune.experiments.presets import FinetuneConfig, PretrainConfig
from dtune.models.decision_transformer import DecisionTransformer
from dtune.models.device import choose_device
from dtune.models.reinformer import Reinformer

ARCHITECTURES = {"dt": "DecisionTransformer", "reinformer": "Reinformer"}
"""What a preset calls a network, and the kind it is stored as."""

MAY_CHANGE = ("iterations", "time_limit", "threads", "device")
"""Settings in which a run that is continued may differ from its beginning; on another device it rounds otherwise."""

Rows = list[dict[str, float]]


def finetune(
    algorithm: Algorithm,
    simulator: Simulator,
    *,
    iterations: int,
    directory: str | Path | None = None,
    return_to_go: float | None = None,
    evaluate_every: int = 10,
    evaluation_episodes: int = 20,
    task: str | None = None,
    quiet: bool = False,
) -> Rows:
    """Improves `algorithm.policy` in place.

    Args:
        algorithm: a `GRPO`, a `PPO`, or anything with `policy`, `iterate`, `state_dict` and `load_state_dict`.
        simulator: where it learns.
        iterations: how long, counted from the beginning of the run.
        directory: a run folder for settings, metrics and checkpoints; called again with it, the run continues.
        return_to_go: return asked for in evaluations; that of the algorithm's `config` where None.
        evaluate_every: iterations between evaluations.
        evaluation_episodes: episodes an evaluation.
        task: name of the task or dataset that `simulator` is of, for normalised scores, and for `dtune evaluate`.
        quiet: print nothing.

    Returns:
        One row an iteration, by metric key; the first is the evaluation before any learning.

    Raises:
        ConfigError: if the folder holds a run with other settings, no return to ask for is known, or `simulator` is
            none.
    """
    own = getattr(algorithm, "config", None)  # an algorithm of one's own may have none
    goal = getattr(own, "return_to_go", None) if return_to_go is None else return_to_go
    if goal is None:
        raise ConfigError("the algorithm has no config.return_to_go: say which return to ask for with return_to_go=")
    check_members(simulator)
    evaluation = Evaluation(simulator=simulator, return_to_go=goal, episodes=evaluation_episodes, task=task)
    schedule = Schedule(iterations=iterations, evaluate_every=evaluate_every, checkpoint_every=evaluate_every)
    about = {"return_to_go": goal} | ({} if task is None else {"dataset": task})
    documents = describe(algorithm.policy, **about) if isinstance(algorithm.policy, StoredPolicy) else {}
    folder = None if directory is None else Path(directory)
    with together.joined(folder):
        if folder is not None and not parallel.rank():
            settings = {"task": task, "return_to_go": goal, "iterations": iterations}
            settings |= {"algorithm": own} if is_dataclass(own) else {}
            settle_config(folder, settings, may_change=MAY_CHANGE)
            write_meta(folder)
        return train(
            algorithm,
            simulator,
            schedule,
            evaluation=evaluation,
            directory=folder,
            documents=documents,
            quiet=quiet,
        )


def data_file(config: PretrainConfig) -> Path:
    """The file a pretraining run reads where none is named; a random dataset is recorded if it is not there."""
    return find(config.dataset, episodes=config.random_episodes, seed=config.seed, threads=config.threads)


def _offline_data(name: str, path: Path) -> Dataset:
    """The file at `path`, cut by the rule of the dataset called `name`, and found to fit its task."""
    dataset, info = load_dataset(path, splitting=source(name).splitting), task_info(name)
    check_fits(dataset, info.observation_dim, info.action_dim)
    return dataset


def pretrain_preset(
    config: PretrainConfig, directory: Path, data: Path | None = None, *, mirror: str | None = None, wait: bool = False
) -> Rows:
    """Runs a pretraining preset in `directory`, or continues it there.

    Args:
        config: what to run.
        directory: the run folder.
        data: the dataset's file; `loading.find` looks for it where None, and records a random one.
        mirror: a key of `mirrors.MIRRORS`, to repeat the metrics to.
        wait: where another process is at it, for that one, whose work is then found done.

    Raises:
        DataError: if there are no data, or data that do not fit the task.
        ConfigError: if the folder holds a run with other settings.
    """
    together.refuse_many("pretraining", "run `dtune pretrain` without it first, and give all ranks --policy")
    with _torch_as(config), locked(directory, wait=wait):
        info = task_info(config.dataset)
        device = choose_device(config.device)
        path = data or data_file(config)
        dataset = _offline_data(config.dataset, path)
        generator = torch.Generator().manual_seed(config.seed)
        policy = _make_policy(config, info, generator).to(device)
        policy.set_statistics(*dataset.observation_statistics())
        algorithm = Supervised(policy, config.algorithm, drop_lowest_return(dataset), generator)
        return _train(config, algorithm, directory, path, f"pretrain {config.dataset}", mirror)


@contextmanager
def _torch_as(config: PretrainConfig | FinetuneConfig) -> Iterator[None]:
    """What of PyTorch is the same for the whole process, while a run lasts."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(config.network_threads)
    torch.set_float32_matmul_precision(config.matmul_precision)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def _make_policy(
    config: PretrainConfig, info: TaskInfo, generator: torch.Generator
) -> DecisionTransformer | Reinformer:
    """The network a preset describes, with fresh weights."""
    make, shape = KINDS[ARCHITECTURES[config.architecture]]
    return make(
        shape(
            observation_dim=info.observation_dim,
            action_dim=info.action_dim,
            context_length=config.algorithm.context_length,
            return_scale=info.return_scale,
            **vars(config.model),
        ),
        generator,
    )


def refuse_early(config: FinetuneConfig, directory: Path, pretrained: Path, mirror: str | None = None) -> None:
    """Of what `finetune_preset` refuses, all that no policy is needed for: before one is `pretrained` there.

    Raises:
        ConfigError: if the folder holds a run with other settings, or of another policy, or there is no such mirror.
    """
    offline = ALGORITHMS[type(config.algorithm)].offline  # then the record names the data, not the policy
    if not (offline or (pretrained / "checkpoints").exists()):  # else their hashes are compared, in no time
        refuse_begun(directory)
    if mirror is not None:
        prepare(mirror, "", {}, directory)
    check_config(directory, config, may_change=MAY_CHANGE)


def finetune_preset(
    config: FinetuneConfig,
    directory: Path,
    policy: Path | None,
    data: Path | None = None,
    *,
    mirror: str | None = None,
) -> Rows:
    """Runs a finetuning preset in `directory`, from the policy at `policy`, or continues it there.

    Args:
        config: what to run.
        directory: the run folder.
        policy: a run folder or a checkpoint; None for methods that begin with a policy of their own.
        data: the dataset's file, for methods that go on learning from it.
        mirror: a key of `mirrors.MIRRORS`, to repeat the metrics to.

    Raises:
        ConfigError: if the folder holds a run with other settings, or the policy does not fit the task or method.
        DataError: if there are no data, or data that do not fit the task.
    """
    method = ALGORITHMS[type(config.algorithm)]
    if method.alone:
        together.refuse_many(method.name, "start it without, or choose a method whose walks can be shared")
    with _torch_as(config), together.joined(directory, config):
        generator = torch.Generator().manual_seed(config.seed)
        network, start = _first_policy(method, config, policy, generator)
        network.to(choose_device(config.device))
        offline = {}
        if method.offline:
            if data is None:
                raise ConfigError(f"{method.name} goes on learning from the offline data: say where they are")
            offline = {"dataset": _offline_data(config.dataset, data)}
            start = data
        algorithm = method.make(network, config.algorithm, generator=generator, **offline)
        return _train(config, algorithm, directory, start, f"{method.name} {config.dataset}", mirror)


def _first_policy(
    method: Method, config: FinetuneConfig, path: Path | None, generator: torch.Generator
) -> tuple[StoredPolicy, Path | None]:
    """The policy a run begins with, and where it was read."""
    info = task_info(config.dataset)
    if method.policy is not None:
        if path is not None:
            raise ConfigError(f"{method.name} begins with a policy of its own: leave out the one at {path}")
        return method.policy(config.algorithm, info.observation_dim, info.action_dim, generator), None
    if path is None:
        raise ConfigError(f"{method.name} improves a pretrained policy: say where it is")
    start = path if parallel.rank() else find_checkpoint(path)
    network = together.policy_at(start)
    sizes = (network.config.observation_dim, network.config.action_dim)
    if sizes != (info.observation_dim, info.action_dim):
        raise ConfigError(
            f"{start} observes {sizes[0]} numbers and acts with {sizes[1]}, but {info.name} has"
            f" {info.observation_dim} and {info.action_dim}: give a policy pretrained for {info.name}"
        )
    return network, start


def _train(
    config: PretrainConfig | FinetuneConfig, algorithm: Algorithm, directory: Path, source: Path | None, title: str,
    mirror: str | None,
) -> Rows:  # fmt: skip
    """The loop in a run folder; `source` is the file or folder that the run begins from."""
    simulator = make_simulator(config.dataset, config.threads)
    if isinstance(config, PretrainConfig):
        goal = config.return_to_go
        schedule = Schedule(
            iterations=config.iterations, evaluate_every=max(1, config.iterations), checkpoint_every=4,
            start_counts=False,
        )  # fmt: skip
    else:
        goal = config.algorithm.return_to_go
        schedule = Schedule(
            iterations=config.iterations,
            evaluate_every=config.evaluate_every,
            checkpoint_every=config.checkpoint_every,
            evaluate_seconds=config.evaluate_seconds,
            time_limit=config.time_limit,
            clock=config.clock,
        )
    evaluation = Evaluation(
        simulator=simulator, return_to_go=goal, episodes=config.evaluation_episodes, task=config.dataset
    )
    begin_mirror = None
    if not parallel.rank():
        begin_mirror = None if mirror is None else prepare(mirror, title, plain(config), directory)
        digest = settle_source(directory, source)
        settle_config(directory, config, may_change=MAY_CHANGE)  # after all else that can be refused
        if say := write_meta(directory, source=source, digest=digest):
            print(say, flush=True)
    assert isinstance(algorithm.policy, StoredPolicy)
    documents = describe(algorithm.policy, dataset=config.dataset, return_to_go=goal, seed=config.seed)
    return train(
        algorithm, simulator, schedule, evaluation=evaluation, directory=directory, documents=documents, title=title,
        mirror=begin_mirror,
    )  # fmt: skip


def evaluate(
    path: Path, *, episodes: int = 20, return_to_go: float | None = None, threads: int = 1, device: str = "cpu"
) -> dict[str, Any]:
    """Judges the policy at `path` on the task it was made for.

    Args:
        path: a run folder (its best checkpoint) or a checkpoint.
        episodes: how many, with mean actions.
        return_to_go: return asked for; what the policy was finetuned with where None.
        threads: CPU threads.
        device: where the network is, `cpu` or `cuda`.

    Returns:
        Metrics by key, and `dataset`, `return_to_go`, `checkpoint`.
    """
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)
    place, directory = choose_device(device), find_checkpoint(path).resolve()
    policy, about = load_policy(directory).to(place), read_about(directory)
    if "dataset" not in about:
        raise ConfigError(f"{directory} does not say which task its policy is for: evaluate it from Python")
    if return_to_go is None and "return_to_go" not in about:
        raise ConfigError(f"{directory} does not say which return to ask for: say it with --return-to-go")
    goal = about["return_to_go"] if return_to_go is None else return_to_go
    simulator = make_simulator(about["dataset"], threads)
    judge = Evaluation(simulator=simulator, return_to_go=goal, episodes=episodes, task=about["dataset"])
    return {
        "checkpoint": str(directory),
        "dataset": about["dataset"],
        "return_to_go": goal,
        "context_length": policy.context_length,
        **judge(policy),
    }
