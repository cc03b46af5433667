"""A decision transformer that only acts: what its last token needs, of weights that stay as they are meanwhile.

At context 1 a step is two tokens, g and s, and the return token attends to itself alone: its keys and values are, in
every block, a function of one number, tabulated here. What is left is the state token's way through the blocks, in
which attention over two tokens is a sigmoid:

    softmax(q·k_g, q·k_s) = (p, 1 - p),  p = σ(q·(k_g - k_s)) = ½ (1 + tanh ½ q·(k_g - k_s))
    attended = v_s + p (v_g - v_s)

An actor is checked on the actual weights before it is used, and the next more careful one taken where it errs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from dtune.data.steps import Steps
from dtune.models.decision_transformer import LOG_STD_MAX, LOG_STD_MIN, Block, DecisionTransformer
from dtune.models.device import CPU, to_cpu
from dtune.models.distributions import TanhNormal
from dtune.models.graphs import Replayed
from dtune.models.policy import Actor
from dtune.models.products import Activation, linear, packed

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}
"""How far an actor's means and log-deviations may be from the policy's, on the probes."""
ROUNDED = 1e-2
"""The same in float32, where PyTorch may round the factors of its products."""
POINTS = 256
"""Returns in a table. The error of cubic interpolation falls with their fourth power; at 128 it is float32's own."""
PROBES = 64

Returns = Callable[[Float[Tensor, "rows"]], Float[Tensor, "rows all_keys_and_values"]]
"""Keys and values of return tokens, those of one block behind those of another."""


@dataclass(frozen=True)
class CheckedActor:
    """An `Actor` that has been compared with its policy.

    Attributes:
        kind: "tabulated", "direct", or "policy" itself.
        error: the largest difference in a mean or a log-deviation, on the probes.
    """

    act: Actor
    kind: str
    error: float

    @torch.inference_mode()
    def __call__(self, window: Steps) -> TanhNormal:
        """π at the last step."""
        return self.act(window)


@torch.no_grad()
def make_actor(policy: DecisionTransformer, dtype: torch.dtype = torch.float32) -> CheckedActor:
    """The fastest actor that agrees with `policy` on the probes, within `TOLERANCE`.

    Which one that is depends on the weights alone, so that all walks of one policy are walked by the same.
    """
    probes, candidates = _probes(policy), _candidates(policy, dtype)
    expected = policy.last(probes)
    for kind, make, tolerance in candidates:
        actor = make()
        error = _difference(actor(probes), expected)
        if error <= tolerance:  # False for NaN
            return CheckedActor(actor, kind, error)
    return CheckedActor(policy.last, "policy", 0.0)


def _candidates(policy: DecisionTransformer, dtype: torch.dtype) -> list[tuple[str, Callable[[], Actor], float]]:
    """Name, maker and tolerance of each, the fastest first."""
    dtypes = dict.fromkeys((dtype, torch.float32))
    tolerance = TOLERANCE | ({} if torch.get_float32_matmul_precision() == "highest" else {torch.float32: ROUNDED})
    if policy.context_length > 1 or policy.embed_timestep is not None:  # the return token is no function of g alone
        return [("policy", partial(_autocast, policy, dtype), tolerance[dtype])] if len(dtypes) > 1 else []
    looked_up = [("tabulated", partial(_by_table, policy, kind), tolerance[kind]) for kind in dtypes]
    direct = partial(StateToken, policy, partial(return_tokens, policy))
    return [*looked_up, ("direct", direct, tolerance[torch.float32])]


def _by_table(policy: DecisionTransformer, dtype: torch.dtype) -> Actor:
    return StateToken(policy, ReturnTable(policy), dtype)


def _autocast(policy: DecisionTransformer, dtype: torch.dtype) -> Actor:
    def act(window: Steps) -> TanhNormal:
        with torch.autocast(policy.observation_mean.device.type, dtype):
            answer = policy.last(window)
        return TanhNormal(answer.mean.float(), answer.std.float())

    return act


def _difference(answer: TanhNormal, expected: TanhNormal) -> float:
    means, spreads = answer.mean - expected.mean, answer.std.log() - expected.std.log()
    return torch.stack([means, spreads]).abs().max().item()


def _probes(policy: DecisionTransformer) -> Steps:
    """Windows as the policy might see them, always the same: observations as in its data, all returns there are."""
    generator, time = torch.Generator().manual_seed(0), policy.context_length

    def normal(*size: int) -> Tensor:
        return torch.randn(PROBES, time, *size, generator=generator)

    actions, scalar = normal(policy.action_dim), normal()
    angles = torch.linspace(-1.5, 1.5, PROBES)[:, None].expand(PROBES, time)
    return Steps(
        observations=policy.observation_mean.to(CPU)
        + policy.observation_std.to(CPU) * normal(len(policy.observation_mean)),
        raw_actions=actions,
        actions=actions.tanh(),
        rewards=scalar,
        returns_to_go=Angle.of(policy).inverse(angles),
        log_probs=scalar,
        timesteps=torch.arange(time).expand(PROBES, time),
        mask=torch.ones(PROBES, time, dtype=torch.bool),
    )


@dataclass(frozen=True)
class Angle:
    """All returns on an interval: φ(g) = atan((g + shift) / unit), in (-π/2, π/2).

    The return token enters the network as norm(w g + b). Less their means, w and b span a plane, and norm leaves only
    the direction in it, which is φ: the tokens of all g, to infinity, lie evenly on half a circle.
    """

    shift: float
    unit: float

    @classmethod
    def of(cls, policy: DecisionTransformer) -> "Angle":
        """That of the network's return token."""
        scale = policy.config.return_scale
        embed = policy.embed_return
        slope, bias = embed.weight.detach()[:, 0].double().to(CPU), embed.bias.detach().double().to(CPU)
        slope, bias = slope - slope.mean(), bias - bias.mean()
        along = (slope @ bias) / (slope @ slope)
        across = bias - along * slope
        unit = ((across @ across + len(bias) * policy.norm_embedding.eps) / (slope @ slope)).sqrt()
        return cls(float(along) / scale, float(unit) / scale)

    def __call__(self, returns: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """φ(g)."""
        return ((returns + self.shift) * (1 / self.unit)).atan_()

    def inverse(self, angles: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """g of φ."""
        return (angles.double().tan() * self.unit - self.shift).float()


class ReturnTable:
    """Keys and values of return tokens by cubic interpolation (Lagrange's) between `points` angles."""

    def __init__(self, policy: DecisionTransformer, points: int = POINTS):
        self.angle, self.points = Angle.of(policy), points
        angles = (torch.arange(points).double() + 0.5) * (math.pi / points) - math.pi / 2
        self.table = return_tokens(policy, self.angle.inverse(angles))
        nodes = torch.arange(4).double() - 1.5
        powers = torch.stack([nodes**power for power in range(4)])
        device = self.table.device
        self.weights = torch.linalg.inv(powers).T.float().to(device)  # powers of x -> weight of each node
        self.powers, self.ahead = torch.arange(4.0, device=device), torch.arange(4, device=device)

    def __call__(self, returns: Float[Tensor, "rows"]) -> Float[Tensor, "rows all_keys_and_values"]:
        """Row i is entered between its points 1 and 2 of four, at x in [-½, ½]; at the ends, beside them."""
        place = self.angle(returns).mul_(self.points / math.pi).add_(self.points / 2 - 1.5)
        first = place.clamp(0, self.points - 4).long()
        x = place.sub_(first).sub_(0.5)
        weights = x[:, None].pow(self.powers) @ self.weights
        return embedding_bag(first[:, None] + self.ahead, self.table, mode="sum", per_sample_weights=weights)


@torch.no_grad()
def return_tokens(
    policy: DecisionTransformer, returns: Float[Tensor, "rows"]
) -> Float[Tensor, "rows all_keys_and_values"]:
    """Keys and values of return tokens that see themselves alone."""
    returns = returns.to(policy.observation_mean.device)
    x = policy.norm_embedding(policy.embed_return(returns[:, None] * policy.config.return_scale))
    width, found = x.shape[1], []
    for block in policy.blocks:
        assert isinstance(block, Block)
        found.append(linear(block.norm_attention(x), block.qkv.weight[width:], block.qkv.bias[width:]))
        if block is not policy.blocks[-1]:
            x = x + linear(found[-1][:, width:], block.project.weight, block.project.bias)
            hidden = block.activation(linear(block.norm_mlp(x), block.expand.weight, block.expand.bias))
            x = x + linear(hidden, block.contract.weight, block.contract.bias)
    return torch.cat(found, 1)


class StateToken:
    """An `Actor` at context 1: takes the state token through the blocks, past the return token's keys and values.

    Args:
        policy: its weights are packed for products.
        returns: keys and values of the return tokens.
        dtype: of the factors of the blocks' products; all else, and all sums, are in float32.
    """

    def __init__(self, policy: DecisionTransformer, returns: Returns, dtype: torch.dtype = torch.float32):
        compute = _Blocks(policy, returns, dtype)
        self.compute = Replayed(compute, compute.device) if compute.device.type == "cuda" else compute

    def __call__(self, window: Steps) -> TanhNormal:
        """π at the last step."""
        return to_cpu(TanhNormal(*self.compute(window.returns_to_go[:, -1], window.observations[:, -1])))


class _Blocks:
    """The way of state tokens, from what is seen to the mean and deviation of an action, on the network's device."""

    def __init__(self, policy: DecisionTransformer, returns: Returns, dtype: torch.dtype):
        self.returns, self.device = returns, policy.observation_mean.device
        self.parts = (-1, len(policy.blocks), 2, policy.config.heads, policy.config.width // policy.config.heads)
        activation = policy.config.activation
        self.embed = _packed_embedding(policy)
        self.layers = [_StateBlock(cast(Block, block), activation, dtype) for block in policy.blocks]
        mean, log_std = policy.head_mean, policy.head_log_std
        self.head = packed(torch.cat([mean.weight, log_std.weight]), torch.cat([mean.bias, log_std.bias]))
        self.norm_embedding, self.norm_final = _fixed(policy.norm_embedding), _fixed(policy.norm_final)

    def __call__(
        self, returns: Float[Tensor, "rows"], seen: Float[Tensor, "rows obs"]
    ) -> tuple[Float[Tensor, "rows action"], Float[Tensor, "rows action"]]:
        if seen.device != self.device:
            returns, seen = returns.to(self.device), seen.to(self.device)
        known = self.returns(returns).view(self.parts).unbind(1)
        x = self.norm_embedding(self.embed(seen))
        for block, keys_and_values in zip(self.layers, known, strict=True):
            x = block(x, keys_and_values)
        mean, spread = self.head(self.norm_final(x)).chunk(2, 1)
        half = 0.5 * (LOG_STD_MAX - LOG_STD_MIN)
        spread = spread.tanh().mul_(half).add_(LOG_STD_MIN + half).exp_()
        return mean.contiguous(), spread


class _StateBlock:
    """A `Block` for a state token that sees itself and its return token."""

    def __init__(self, block: Block, activation: Activation, dtype: torch.dtype):
        width = block.project.in_features
        scale = torch.ones(3 * width, device=block.qkv.weight.device)
        scale[:width] = 0.5 * (width / block.heads) ** -0.5
        self.parts, self.exact = (-1, 3, block.heads, width // block.heads), dtype == torch.float32
        self.norm_attention, self.norm_mlp = _fixed(block.norm_attention), _fixed(block.norm_mlp)
        self.qkv = packed(block.qkv.weight * scale[:, None], block.qkv.bias * scale, dtype)
        self.project = packed(block.project.weight, block.project.bias, dtype)
        self.expand = packed(block.expand.weight, block.expand.bias, dtype, activation)
        self.contract = packed(block.contract.weight, block.contract.bias, dtype)

    def __call__(self, x: Float[Tensor, "rows width"], known: Float[Tensor, "rows 2 heads part"]) -> Tensor:
        own = self.qkv(self.norm_attention(x)).view(self.parts)
        own = own if self.exact else own.float()
        keys, values = (known - own[:, 1:]).unbind(1)  # of the return token, less the state token's own
        query, _, value = own.unbind(1)
        # not sigmoid, whose last few elements, where their number is odd, round differently from all others
        share = (query * keys).sum(2, keepdim=True).tanh_().add_(1)
        seen = torch.addcmul(value, share, values, value=0.5)
        x = x + self.project(seen.view(x.shape))
        return x + self.contract(self.expand(self.norm_mlp(x)))


def _packed_embedding(policy: DecisionTransformer) -> Callable[[Float[Tensor, "rows obs"]], Tensor]:
    """W (s - mean) / std + b of observations, in one product: (W / std) s + (b - W mean / std)."""
    embed = policy.embed_observation
    weight = embed.weight.double() / policy.observation_std.double()
    bias = embed.bias.double() - weight @ policy.observation_mean.double()
    return packed(weight.float(), bias.float())


def _fixed(norm: torch.nn.LayerNorm) -> Callable[[Float[Tensor, "rows width"]], Float[Tensor, "rows width"]]:
    """`norm` with its present weights, which need not be looked up any more."""
    shape, eps = list(norm.normalized_shape), norm.eps
    weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
