"""A policy as one ONNX file, written only if the network in it gives what the policy gives."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtune.data.steps import Steps, concatenate, empty_steps
from dtune.envs.collect import collect_episodes
from dtune.envs.tasks import make_simulator
from dtune.errors import ConfigError, DtuneError, SimulatorError
from dtune.experiments import disk
from dtune.experiments.policies import StoredPolicy, find_checkpoint, load_policy, read_about
from dtune.models.portable import INPUTS, OUTPUTS, Portable

TOLERANCE = 1e-5
"""Largest difference allowed between file and policy, see `compare`."""

WINDOWS = 1000
"""How many are compared."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how it compares."""

    path: Path
    """The file."""
    inputs: dict[str, list[Any]]
    """Shape of each input; text where any number will do."""
    compared_on: str
    """What the windows are of."""
    differences: dict[str, float]
    """Largest difference from the policy, by output."""


def export_policy(path: str | Path, out: str | Path, *, seed: int = 0) -> Exported:
    """Writes a policy as ONNX: windows in environment units in, the mean action and its distribution out.

    Args:
        path: a run folder (its best checkpoint) or a checkpoint.
        out: the file to write.
        seed: of the walks that file and policy are compared on.

    Raises:
        ConfigError: if there is no policy at `path`, `out` cannot be written, or a package is not installed.
        DtuneError: if the file would act differently; then nothing is written.
    """
    _packages()  # before the work that would be lost without them
    directory, out = find_checkpoint(Path(path)), Path(out)
    if out.suffix != ".onnx" or not out.parent.is_dir():
        raise ConfigError(f"{out} must be a file whose name ends in .onnx, in a folder that is there")
    policy, about = load_policy(directory), read_about(directory)
    windows, compared_on = _windows(policy, about, torch.Generator().manual_seed(seed))
    facts = {"kind": type(policy).__name__, "context_length": policy.context_length, **about}
    network = to_onnx(policy, windows, facts)
    differences = compare(network, policy, windows)
    wrong = {name: value for name, value in differences.items() if not value <= TOLERANCE}
    if wrong:
        said = ", ".join(f"{name} by {value:.1e}" for name, value in wrong.items())
        raise DtuneError(
            f"the exported network differs from {directory} ({said}; at most {TOLERANCE:g} is allowed): nothing was"
            " written; try the versions of torch, onnx and onnxruntime in dtune's constraints.txt"
        )
    try:
        disk.replace(out, network)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}): choose another --out") from error
    return Exported(path=out, inputs=_shapes(network), compared_on=compared_on, differences=differences)


def to_onnx(policy: StoredPolicy, windows: Steps, facts: Mapping[str, Any]) -> bytes:
    """The policy as an ONNX model.

    Args:
        policy: what is exported.
        windows: some inputs, of the sizes the network is to have; the number of rows stays open.
        facts: kept in the file's metadata, as text.
    """
    onnx, _ = _packages()
    example = tuple(getattr(windows, name)[:16].contiguous() for name in INPUTS)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells of packages that are not needed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own insides
            program = torch.onnx.export(
                Portable(policy),
                example,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
                dynamic_shapes=[{0: torch.export.Dim("batch", min=1)} for _ in INPUTS],
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {name: str(value) for name, value in facts.items()})
    return bytes(model.SerializeToString())


@torch.no_grad()
def compare(network: bytes, policy: StoredPolicy, windows: Steps) -> dict[str, float]:
    """Largest difference between an ONNX model and the policy, by output; where one goes beyond 1, as a share of the
    largest it has."""
    inputs = [getattr(windows, name) for name in INPUTS]
    feed = {name: value.numpy() for name, value in zip(INPUTS, inputs)}
    got = _session(network).run(list(OUTPUTS), feed)
    wanted: tuple[Tensor, ...] = Portable(policy)(*inputs)
    pairs = zip(OUTPUTS, got, (value.numpy() for value in wanted))
    return {name: float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for name, a, b in pairs}


def _windows(policy: StoredPolicy, about: Mapping[str, Any], generator: torch.Generator) -> tuple[Steps, str]:
    """`WINDOWS` windows, and what they are of: the policy's own walks, where its world is known."""
    name = about.get("dataset")
    if name is not None:
        try:
            simulator = make_simulator(name)
        except ConfigError:  # its models are not installed: exporting can do without
            pass
        else:
            return _walked(policy, simulator, float(about.get("return_to_go", 0)), generator), f"its walks in {name}"
    return _drawn(policy, float(about.get("return_to_go", 1000)), generator), "numbers drawn at random"


def _walked(policy: StoredPolicy, simulator: Any, return_to_go: float, generator: torch.Generator) -> Steps:
    """Windows as the policy sees them when it explores."""
    parts: list[Steps] = []
    while sum(len(part.mask) for part in parts) < WINDOWS:
        episodes, _ = collect_episodes(policy, simulator, 16, return_to_go, generator)
        if not len(episodes):
            raise SimulatorError("no walk of this policy has finite numbers: there is nothing to compare it on")
        steps = episodes.steps
        shape = steps.observations.shape[-1], policy.action_dim
        before = empty_steps(len(episodes), policy.context_length - 1, *shape)
        windows = concatenate([before, steps], 1).windows(policy.context_length)
        parts.append(windows.map(lambda x, real=windows.mask[:, -1]: x[real]))  # type: ignore[misc]
    walked = concatenate(parts, 0)
    rows = torch.randperm(len(walked.mask), generator=generator)[:WINDOWS]
    return walked.map(lambda x: x[rows])


def _drawn(policy: StoredPolicy, return_to_go: float, generator: torch.Generator) -> Steps:
    """Windows with observations of the mean and deviation that the policy normalises by."""
    time, width = policy.context_length, policy.config.observation_dim
    known = policy.state_dict()
    mean, std = known.get("observation_mean", torch.zeros(width)), known.get("observation_std", torch.ones(width))
    flat = torch.zeros(WINDOWS, time)
    actions = torch.rand(WINDOWS, time, policy.action_dim, generator=generator) * 2 - 1
    begun = torch.randint(time, (WINDOWS, 1), generator=generator)
    return Steps(
        observations=mean + std * torch.randn(WINDOWS, time, width, generator=generator),
        raw_actions=actions,
        actions=actions,
        rewards=flat,
        returns_to_go=return_to_go * torch.rand(WINDOWS, time, generator=generator),
        log_probs=flat,
        timesteps=torch.arange(time).expand(WINDOWS, -1),
        mask=torch.arange(time) >= begun,
    )


def _shapes(network: bytes) -> dict[str, list[Any]]:
    return {found.name: list(found.shape) for found in _session(network).get_inputs()}


def _session(network: bytes) -> Any:
    _, onnxruntime = _packages()
    return onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])


def _packages() -> tuple[Any, Any]:
    """onnx and onnxruntime."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch asks for it
    except ImportError as error:
        raise ConfigError(f"exporting needs {error.name}, which is not here: pip install 'dtune[onnx]'") from error
    return onnx, onnxruntime
