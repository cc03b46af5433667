"""What a decision transformer must offer to be finetuned."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dtune.data.datasets import Dataset, check_fits
from dtune.data.steps import Steps
from dtune.errors import ConfigError
from dtune.models.distributions import TanhNormal


@runtime_checkable
class Policy(Protocol):
    """A return-conditioned sequence model of actions. Implement these four and every algorithm works.

    Everything passed in or out is in environment units: a policy owns its state normalisation and its return
    scale (buffers in its `state_dict`), so that a checkpoint is self-contained.

    Two promises keep importance ratios honest. An output depends on nothing but its own past: later steps and
    padding (`mask` False) never change it. And the same context always gives the same distribution: no
    dropout while finetuning.
    """

    context_length: int
    """Steps of history the policy reads, the current one included."""

    action_dim: int
    """Dimensions of an action, each in (-1, 1)."""

    def __call__(self, context: Steps) -> TanhNormal:
        """π(aₕ | context up to gₕ, sₕ) at every step of the window.

        Args:
            context: a window of `[batch, window]` steps, `window` at most `context_length`. Reads
                `observations`, `returns_to_go`, `mask`, and `actions` of the steps before h; never `rewards`.
                The last step's action is not known yet when acting: it must not matter.

        Returns:
            Distributions with mean and standard deviation `[batch, window, action_dim]`; what stands on
            padding is unspecified, but finite.
        """

    def next_return_to_go(
        self, returns_to_go: Float[Tensor, "batch"], rewards: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """What to condition on at the next step: g - r, what is left to earn (a `ReturnPredictor` is asked anew).

        Args:
            returns_to_go: what the policy was conditioned on at this step, in environment units.
            rewards: what this step earned, in environment units.
        """


@contextmanager
def at_context(policy: Policy, length: int) -> Iterator[None]:
    """`policy` is given windows of up to `length` steps meanwhile."""
    before = policy.context_length
    policy.context_length = length
    try:
        yield
    finally:
        policy.context_length = before


@runtime_checkable
class ReturnPredictor(Policy, Protocol):
    """A `Policy` that conditions on a return-to-go of its own making (Reinformer), whatever number is asked for.

    What it predicted when it acted is stored and conditioned on ever after: an update never predicts again, so its
    ratios do not move with the prediction.
    """

    def predict_return_to_go(self, context: Steps) -> Float[Tensor, "batch time"]:
        """ĝₕ from the context up to sₕ, at every step of the window, in environment units.

        Args:
            context: as for the action. Of the step predicted for, and of later ones, neither `returns_to_go` nor
                `actions` matter.
        """
        ...


@runtime_checkable
class SizedPolicy(Policy, Protocol):
    """A `Policy` that says how many numbers it observes, so that the wrong world is told in a sentence."""

    observation_dim: int


def check_observes(policy: Policy, count: int) -> None:
    """Raises `ConfigError` where a policy is known to observe another number of numbers than a world has."""
    if isinstance(policy, SizedPolicy) and policy.observation_dim != count:
        raise ConfigError(
            f"the policy observes {policy.observation_dim} numbers and this world has {count}: give a policy made for"
            " it, or the world that the policy was made for"
        )


def check_learns_from(policy: Policy, dataset: Dataset) -> None:
    """Raises `DataError` where a dataset has not the sizes of a policy that is to learn from it."""
    observed = policy.observation_dim if isinstance(policy, SizedPolicy) else dataset.observations.shape[1]
    check_fits(dataset, observed, policy.action_dim)


Actor = Callable[[Steps], TanhNormal]
"""Of a window, π at its last step alone, `[batch, action]`."""


@runtime_checkable
class ActingPolicy(Policy, Protocol):
    """A `Policy` with a faster way to act than to be asked about whole windows."""

    def acting(self, dtype: torch.dtype = torch.float32) -> Actor:
        """What acts as this policy does with its present weights, until they change.

        It gives what the policy gives but for rounding, and a row's answer, to the last bit, does not depend on the
        rows beside it. On a CPU, several threads may ask it at the same time. Importance ratios do not rest on it:
        log-probabilities to learn from are the policy's own.

        Args:
            dtype: float32, or a shorter one in which it may compute where no likelihood is asked for.
        """
        ...


def actor_of(policy: Policy, dtype: torch.dtype = torch.float32) -> Actor:
    """The fastest way to act as `policy`, whose weights do not change meanwhile."""
    if isinstance(policy, ActingPolicy):
        return policy.acting(dtype)
    return policy.last if isinstance(policy, LastStepPolicy) else lambda window: policy(window)[:, -1]


@runtime_checkable
class LastStepPolicy(Policy, Protocol):
    """A `Policy` that need not work out every step of a window where the last alone is asked for."""

    def last(self, context: Steps) -> TanhNormal:
        """π at the last step, `[batch, action]`: what `self(context)[:, -1]` is, differentiable like it."""
        ...


def at_last(policy: Policy, context: Steps) -> TanhNormal:
    """π at the last step of each window, `[batch, action]`."""
    return policy.last(context) if isinstance(policy, LastStepPolicy) else policy(context)[:, -1]


@runtime_checkable
class TrainablePolicy(Policy, Protocol):
    """A `Policy` that is also an `nn.Module`: what is used of that to train one."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is learned."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same, by name."""
        ...

    def train(self, mode: bool = True) -> "TrainablePolicy":
        """Turns dropout on."""
        ...

    def eval(self) -> "TrainablePolicy":
        """Turns dropout off, as it must be whenever actions are drawn or ratios computed."""
        ...

    def requires_grad_(self, requires_grad: bool = True) -> "TrainablePolicy":
        """Whether gradients reach the parameters."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Parameters and buffers, by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """The inverse of `state_dict`."""
        ...
