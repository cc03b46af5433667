"""The action distribution every policy returns."""

import math
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
ACTION_LIMIT = 1 - 1e-6
"""Recorded actions are clamped to ± this before atanh, as online-dt does: atanh(±1) is infinite."""


@final
@dataclass(frozen=True, eq=False)
class TanhNormal:
    """A diagonal Gaussian u ~ N(μ, σ²) squashed into (-1, 1) by tanh: a = tanh(u).

    *Raw* is an action before tanh. Raw samples are what to store: neither atanh nor its clamp comes between
    an action and its likelihood. Noise is drawn by the caller, from the run's generator. Log-densities,
    entropies and divergences are in nats, summed over action dimensions.
    """

    mean: Float[Tensor, "*batch action"]
    """μ, before squashing."""

    std: Float[Tensor, "*batch action"]
    """σ > 0, before squashing."""

    def __getitem__(self, index: Any) -> "TanhNormal":
        """The distributions at an index of the batch dimensions, as `[:, -1]` for the last step."""
        return TanhNormal(self.mean[index], self.std[index])

    @property
    def mode(self) -> Float[Tensor, "*batch action"]:
        """tanh(μ): the action taken when not exploring; the "expected action" of Sec. 3.2, as in online-dt.

        It is the median of each dimension, not the mean of the squashed distribution.
        """
        return self.squash(self.mean)

    @staticmethod
    def squash(raw: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """a = tanh(u): what the simulator is given."""
        return raw.tanh()

    def sample_raw(self, noise: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """u = μ + σε for standard normal noise ε; differentiable in μ and σ."""
        return self.mean + self.std * noise

    def perturbed_raw(self, noise: Float[Tensor, "*batch action"], *, std: float) -> Float[Tensor, "*batch action"]:
        """u of clip(tanh(μ) + sε, ±1): the mode, shaken after squashing, as deterministic policies explore (TD3).

        Args:
            noise: ε, standard normal.
            std: s, in units of actions, which lie in [-1, 1].
        """
        return unsquash(self.mode + std * noise)

    def base_log_prob(self, raw: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
        """log N(u; μ, σ²): the density of the *raw* action, for importance ratios.

        The slope of tanh at u is the same under every policy, so it cancels exactly from π(a) / π_old(a);
        leaving it out keeps its rounding out of the ratio, too.
        """
        return (-0.5 * ((raw - self.mean) / self.std).square() - self.std.log() - HALF_LOG_TWO_PI).sum(-1)

    def log_prob(self, raw: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
        """log π(tanh(u)) = log N(u; μ, σ²) - Σ log tanh'(u): the density of the *squashed* action.

        Args:
            raw: the action before tanh (`unsquash` gives it for recorded actions).
        """
        return self.base_log_prob(raw) - _log_slope(raw).sum(-1)

    def entropy(self, noise: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
        """One-sample estimate of the squashed distribution's entropy: -log π(tanh(u)) at u = μ + σε.

        Unbiased, and differentiable through u. The squashed entropy has no closed form; it is at most log 2 a
        dimension, the uniform distribution's.

        Args:
            noise: ε, standard normal.
        """
        # (u - μ) / σ is ε itself: written so, nothing is lost to the subtraction
        log_normal = -0.5 * noise.square() - self.std.log() - HALF_LOG_TWO_PI
        return (_log_slope(self.sample_raw(noise)) - log_normal).sum(-1)

    def kl(self, other: "TanhNormal") -> Float[Tensor, "*batch"]:
        """KL(self ‖ other) = Σ ½(σ²/σ'² - 1 - log σ²/σ'² + (μ - μ')²/σ'²).

        Exact: the divergence of the Gaussians is that of the squashed ones, as tanh is the same bijection on
        both sides. Exactly 0 between equal distributions.
        """
        log_variance_ratio = 2 * (self.std.log() - other.std.log())
        shift = ((self.mean - other.mean) / other.std).square()
        return 0.5 * (log_variance_ratio.expm1() - log_variance_ratio + shift).sum(-1)


def unsquash(actions: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
    """atanh(a), for recorded actions: those at or beyond ±1 count as ±`ACTION_LIMIT` (raw: about ±7.25)."""
    return actions.clamp(-ACTION_LIMIT, ACTION_LIMIT).atanh()


def _log_slope(raw: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
    """log tanh'(u) = 2(log 2 - u - softplus(-2u)); unlike log(1 - tanh²(u)), finite however large |u| is."""
    return 2 * (math.log(2) - raw - softplus(-2 * raw))
