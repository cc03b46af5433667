"""The decision transformer of Zheng et al. (2022), with this paper's changes (Table 5): SiLU, no positions.

One step is three tokens, (gₕ, sₕ, aₕ); the action is read off the state token. Whatever the network needs to know
about units lives in it: observations come in as the simulator gives them, returns in environment reward units.
"""

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dtune.checks import at_least, finite
from dtune.data.steps import Steps
from dtune.errors import ConfigError
from dtune.models.device import to_cpu, to_device
from dtune.models.distributions import TanhNormal
from dtune.models.dropout import Dropout, attention
from dtune.models.policy import Actor
from dtune.models.products import ACTIVATIONS, Activation, linear

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
BLOCK_TENSORS = 12  # four linear maps and two norms, each of a weight and a bias


@dataclass(frozen=True, kw_only=True)
class DecisionTransformerConfig:
    """The shape of a decision transformer. Defaults are the paper's (Table 5)."""

    observation_dim: int
    """Numbers in an observation."""
    action_dim: int
    """Numbers in an action, each in (-1, 1)."""
    context_length: int = 20
    """Steps of history read, the current one included, c. Pretraining and finetuning may differ."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads a block; must divide `width`."""
    width: int = 512
    """Embedding dimension."""
    dropout: float = 0.1
    """Probability of dropping, in training mode only: embeddings, attention weights, both residual branches."""
    return_scale: float = 0.001
    """Factor from reward units to the network's return token."""
    activation: Activation = "silu"
    """Between the two maps of a block's perceptron: the paper's, or that of an imported network."""
    timestep_embedding: int = 0
    """Positions in an episode with a learned embedding, added to the three tokens of a step (an imported network may
    have them); later ones share the last. 0: none, as in the paper."""

    def __post_init__(self) -> None:
        finite(self)
        at_least(self, 1, "observation_dim", "action_dim", "context_length", "layers", "heads", "width")
        if self.width % self.heads:
            raise ConfigError(
                f"width must be a multiple of heads, got {self.width} and {self.heads}: change one of them"
            )
        if self.activation not in get_args(Activation):
            raise ConfigError(f"activation must be one of {', '.join(get_args(Activation))}, got {self.activation!r}")
        if self.timestep_embedding < 0:
            raise ConfigError(f"timestep_embedding counts positions and cannot be negative: {self.timestep_embedding}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a probability in [0, 1), got {self.dropout}")
        check_return_scale(self.return_scale)

    @property
    def size(self) -> tuple[int, int]:
        """Tensors of such a network's state, and numbers in them: known without making one."""
        inputs = (1 + self.observation_dim + self.action_dim + 3 + self.timestep_embedding) * self.width
        norms, heads = 4 * self.width, 2 * (self.width + 1) * self.action_dim
        tensors = 16 + (self.timestep_embedding > 0) + BLOCK_TENSORS * self.layers
        numbers = inputs + norms + heads + 2 * self.observation_dim + block_numbers(self.width) * self.layers
        return tensors, numbers


def check_return_scale(scale: float) -> None:
    """Refuses a factor for returns that turns them round, or makes them 0, infinite or NaN.

    Raises:
        ConfigError: that says the rule and the value.
    """
    numbers = torch.finfo(torch.float32)
    if not (isinstance(scale, (int, float)) and numbers.tiny <= scale <= numbers.max):
        raise ConfigError(
            f"return_scale must be above 0 and finite in float32, got {scale!r}: give about 1 / the largest return"
        )


def block_numbers(width: int) -> int:
    """Numbers in a transformer block: four linear maps with their biases, and two norms."""
    return 12 * width**2 + 13 * width


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, dropout: float, activation: Activation = "silu"):
        super().__init__()
        self.heads, self.dropout, self.activation = heads, dropout, ACTIVATIONS[activation]
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        visible: Bool[Tensor, "batch 1 tokens tokens"] | None,
        asking: slice | None,
    ) -> Float[Tensor, "batch out width"]:
        """Each token attends to the tokens `visible` to it (None: itself and all before it).

        Behind the last block only some tokens are read: there, only those `asking` ask, and only they come out.
        """
        width, normed = x.shape[-1], self.norm_attention(x)
        if asking is not None:
            x, visible = x[:, asking], None if visible is None else visible[:, :, asking]
        asked = normed if asking is None else normed[:, asking]
        query = linear(asked, self.qkv.weight[:width], self.qkv.bias[:width]).unflatten(-1, (self.heads, -1))
        keys = linear(normed, self.qkv.weight[width:], self.qkv.bias[width:]).unflatten(-1, (2, self.heads, -1))
        key, value = keys.permute(2, 0, 3, 1, 4)  # (B, N, 2, H, D) -> 2 of (B, H, N, D)
        attended = attention(
            query.transpose(1, 2),
            key,
            value,
            visible,
            causal=visible is None and asking is None,  # one state token sees both tokens of its step
            drop=self.dropout if self.training else 0.0,
        )
        attended = attended.transpose(1, 2).flatten(2)  # (B, H, N, D) -> (B, N, H * D)
        x = x + self.drop(linear(attended, self.project.weight, self.project.bias))
        hidden = self.activation(linear(self.norm_mlp(x), self.expand.weight, self.expand.bias))
        return x + self.drop(linear(hidden, self.contract.weight, self.contract.bias))


class DecisionTransformer(nn.Module):
    """A `Policy`: predicts an action from the returns asked for, the observations and the actions before it.

    Attributes:
        context_length: steps of history it is given; may be changed between pretraining and finetuning, because
            there are no position embeddings.
        observation_mean, observation_std: `[obs]`, of the offline data; set once with `set_statistics`.
    """

    observation_mean: Tensor
    observation_std: Tensor

    def __init__(self, config: DecisionTransformerConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.context_length, self.action_dim = config.context_length, config.action_dim
        self.observation_dim = config.observation_dim
        width = config.width
        self.embed_return = nn.Linear(1, width)
        self.embed_observation = nn.Linear(config.observation_dim, width)
        self.embed_action = nn.Linear(config.action_dim, width)
        self.norm_embedding, self.norm_final = nn.LayerNorm(width), nn.LayerNorm(width)
        self.embed_timestep = nn.Embedding(config.timestep_embedding, width) if config.timestep_embedding else None
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.dropout, config.activation) for _ in range(config.layers)
        )
        self.head_mean, self.head_log_std = (
            nn.Linear(width, config.action_dim),
            nn.Linear(width, config.action_dim),
        )
        self.drop = Dropout(config.dropout)
        self.register_buffer("observation_mean", torch.zeros(config.observation_dim))
        self.register_buffer("observation_std", torch.ones(config.observation_dim))
        self._initialise(generator or torch.Generator().manual_seed(0))
        self.eval()

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Blocks N(0, 0.02) without bias, heads orthogonal, embeddings uniform in ±1/√fan_in, bias included.

        The bias of `embed_return` must not be zero: the LayerNorm behind it would then leave only the sign of g.
        """
        for embedding in (self.embed_return, self.embed_observation, self.embed_action):
            bound = embedding.in_features**-0.5
            embedding.weight.uniform_(-bound, bound, generator=generator)
            embedding.bias.uniform_(-bound, bound, generator=generator)
        for block in self.blocks:
            for layer in (m for m in block.modules() if isinstance(m, nn.Linear)):
                layer.weight.normal_(0.0, 0.02, generator=generator)
                layer.bias.zero_()
        for head in (self.head_mean, self.head_log_std):
            nn.init.orthogonal_(head.weight, generator=generator)
            head.bias.zero_()
        if self.embed_timestep is not None:
            self.embed_timestep.weight.normal_(0.0, 0.02, generator=generator)

    def set_statistics(self, mean: Float[Tensor, "obs"], std: Float[Tensor, "obs"]) -> None:
        """Fixes how observations are normalised: (s - mean) / std."""
        self.observation_mean.copy_(mean)
        self.observation_std.copy_(std)

    def forward(self, context: Steps) -> TanhNormal:
        """π(aₕ | context up to gₕ, sₕ) at every step of the window: `[batch, time, action]`.

        The last step's action is never read, so its token is left out: at context 1, two tokens are exact.
        """
        return self._distributions(context, asking=slice(1, None, 3))

    def last(self, context: Steps) -> TanhNormal:
        """π at the last step alone, `[batch, action]`: in the last block and behind it, only its state token."""
        return self._distributions(context, asking=slice(-1, None))[:, 0]

    def acting(self, dtype: torch.dtype = torch.float32) -> Actor:
        """See `ActingPolicy`: at context 1, the return's keys and values are looked up; beyond, `last`."""
        from dtune.models.acting import make_actor

        return make_actor(self, dtype)

    def _distributions(self, context: Steps, asking: slice) -> TanhNormal:
        """At the state tokens that are `asking` behind the last block."""
        context = to_device(context, self.observation_mean.device)
        x = self.drop(self.norm_embedding(self._embed(context)))
        visible = None if context.mask.shape[1] == 1 else self._visible(context.mask)
        for block in self.blocks:
            x = block(x, visible, asking if block is self.blocks[-1] else None)
        states = self.norm_final(x)
        log_std = self.head_log_std(states).tanh()  # squashed into [LOG_STD_MIN, LOG_STD_MAX]
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (log_std + 1)
        return to_cpu(TanhNormal(self.head_mean(states), log_std.exp()))

    def _embed(self, context: Steps) -> Float[Tensor, "batch tokens width"]:
        """Tokens g₀ s₀ a₀ g₁ s₁ a₁ … g s, before normalisation."""
        returns = self.embed_return(context.returns_to_go[..., None] * self.config.return_scale)
        normalised = (context.observations - self.observation_mean) / self.observation_std
        observations = self.embed_observation(normalised)
        clock = None
        if self.embed_timestep is not None:
            clock = self.embed_timestep(context.timesteps.clamp(max=self.config.timestep_embedding - 1))
            returns, observations = returns + clock, observations + clock
        if context.mask.shape[1] == 1:
            return torch.cat([returns, observations], 1)
        actions = self.embed_action(context.actions)
        if clock is not None:
            actions = actions + clock
        return torch.stack([returns, observations, actions], 2).flatten(1, 2)[:, :-1]  # (B, T, 3, D) -> (B, 3T-1, D)

    def _visible(self, mask: Bool[Tensor, "batch time"]) -> Bool[Tensor, "batch 1 tokens tokens"]:
        """Tokens see themselves and earlier ones, but no padding."""
        valid = mask.repeat_interleave(3, 1)[:, :-1]
        causal = torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool, device=mask.device).tril()
        itself = torch.eye(valid.shape[1], dtype=torch.bool, device=mask.device)  # else padding rows would be NaN
        return ((causal & valid[:, None, :]) | itself)[:, None]

    def next_return_to_go(
        self, returns_to_go: Float[Tensor, "batch"], rewards: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """What is still to be earned: gₕ₊₁ = gₕ - rₕ. Not clipped; negative once more was earned than asked for."""
        return returns_to_go - rewards
