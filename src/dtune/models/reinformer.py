"""Reinformer (Zhuang et al., 2024): a sequence model that predicts the return-to-go it then acts on.

One step is three tokens in the order (sₕ, gₕ, aₕ). The return is read off the state token, as the 0.99-expectile of
what followed such states; the action off the return token. No return has to be asked for.

The network departs from the authors' in what a `Policy` must promise: a = tanh(u), u ~ N(μ, σ²), is squashed behind the
noise instead of before it (the mean action, tanh(μ), is the same, and no action leaves (-1, 1)); padding stands on the
left and is masked; log σ is held in [-5, 2] instead of [-20, 2]. docs/algorithms/reinformer.md lists what is different
around it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from dtune.checks import at_least, finite
from dtune.data.steps import Steps
from dtune.errors import ConfigError
from dtune.models.critics import initialise_linear
from dtune.models.decision_transformer import (
    BLOCK_TENSORS,
    LOG_STD_MAX,
    LOG_STD_MIN,
    block_numbers,
    check_return_scale,
)
from dtune.models.device import CPU, to_cpu, to_device
from dtune.models.distributions import TanhNormal
from dtune.models.dropout import Dropout


@dataclass(frozen=True, kw_only=True)
class ReinformerConfig:
    """The shape of a Reinformer. Defaults are its authors'."""

    observation_dim: int
    """Numbers in an observation."""
    action_dim: int
    """Numbers in an action, each in (-1, 1)."""
    context_length: int = 5
    """Steps of history read, the current one included, c."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 8
    """Attention heads a block; must divide `width`."""
    width: int = 256
    """Embedding dimension."""
    dropout: float = 0.1
    """Probability of dropping, in training mode only, on both residual branches."""
    return_scale: float = 0.001
    """Factor from reward units to the network's return token, and to what it predicts."""
    timesteps: int = 4096
    """Positions in an episode that have an embedding of their own; later ones share the last."""

    def __post_init__(self) -> None:
        finite(self)
        at_least(self, 1, "observation_dim", "action_dim", "context_length", "layers", "heads", "width", "timesteps")
        if self.width % self.heads:
            raise ConfigError(
                f"width must be a multiple of heads, got {self.width} and {self.heads}: change one of them"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a probability in [0, 1), got {self.dropout}")
        check_return_scale(self.return_scale)

    @property
    def size(self) -> tuple[int, int]:
        """Tensors of such a network's state, and numbers in them: known without making one."""
        inputs = (1 + self.observation_dim + self.action_dim + 3 + self.timesteps) * self.width
        norm, heads = 2 * self.width, (self.width + 1) * (self.action_dim + 1)
        once = self.action_dim + 2 * self.observation_dim
        numbers = inputs + norm + heads + once + block_numbers(self.width) * self.layers
        return 16 + BLOCK_TENSORS * self.layers, numbers


class PostNormBlock(nn.Module):
    """A post-norm transformer block: x = norm(x + attention(x)), then x = norm(x + mlp(x))."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], visible: Bool[Tensor, "batch 1 tokens tokens"] | None
    ) -> Float[Tensor, "batch tokens width"]:
        """Each token attends to the tokens `visible` to it; None: itself and all before it."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query, key, value, visible, is_causal=visible is None)
        x = self.norm_attention(x + self.drop(self.project(attended.transpose(1, 2).flatten(2))))
        return self.norm_mlp(x + self.drop(self.contract(gelu(self.expand(x)))))


class Reinformer(nn.Module):
    """A `ReturnPredictor`: predicts its return-to-go from the observations, and an action from both.

    σ is one learned number an action dimension, the same everywhere: choosing reset points by variance chooses
    uniformly. Finetuning sends no gradient to the return head; the trunk it reads moves all the same.

    Attributes:
        context_length: steps of history it is given; may be changed between pretraining and finetuning.
        observation_mean, observation_std: `[obs]`, of the offline data; set once with `set_statistics`.
    """

    observation_mean: Tensor
    observation_std: Tensor

    def __init__(self, config: ReinformerConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.context_length, self.action_dim = config.context_length, config.action_dim
        self.observation_dim = config.observation_dim
        width = config.width
        self.embed_observation = nn.Linear(config.observation_dim, width)
        self.embed_return = nn.Linear(1, width)
        self.embed_action = nn.Linear(config.action_dim, width)
        self.embed_timestep = nn.Embedding(config.timesteps, width)
        self.norm_embedding = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(PostNormBlock(width, config.heads, config.dropout) for _ in range(config.layers))
        self.head_return, self.head_mean = nn.Linear(width, 1), nn.Linear(width, config.action_dim)
        self.log_std = nn.Parameter(torch.zeros(config.action_dim))
        self.register_buffer("observation_mean", torch.zeros(config.observation_dim))
        self.register_buffer("observation_std", torch.ones(config.observation_dim))
        generator = generator or torch.Generator().manual_seed(0)
        initialise_linear(self, generator)
        with torch.no_grad():
            self.embed_timestep.weight.normal_(generator=generator)
        self.eval()

    def set_statistics(self, mean: Float[Tensor, "obs"], std: Float[Tensor, "obs"]) -> None:
        """Fixes how observations are normalised: (s - mean) / std."""
        self.observation_mean.copy_(mean)
        self.observation_std.copy_(std)

    def forward(self, context: Steps) -> TanhNormal:
        """π(aₕ | context up to sₕ, gₕ) at every step of the window: `[batch, time, action]`."""
        mean = self.head_mean(self._encode(context, left_out=1)[:, 1::3])
        return to_cpu(TanhNormal(mean, self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp().expand_as(mean)))

    def predict_return_to_go(self, context: Steps) -> Float[Tensor, "batch time"]:
        """ĝₕ from the context up to sₕ, at every step of the window, in environment reward units."""
        states = self._encode(context, left_out=2)[:, ::3]
        # A product with one column rounds by how many rows it has: summed row by row, company changes nothing.
        predicted = (states * self.head_return.weight[0]).sum(-1) + self.head_return.bias
        return (predicted / self.config.return_scale).to(CPU)

    def next_return_to_go(
        self, returns_to_go: Float[Tensor, "batch"], rewards: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """gₕ - rₕ, what would be left of the last one; `predict_return_to_go` takes its place."""
        return returns_to_go - rewards

    def _encode(self, context: Steps, left_out: int) -> Float[Tensor, "batch tokens width"]:
        """What the blocks make of the tokens s₀ g₀ a₀ s₁ g₁ a₁ … without the `left_out` last ones."""
        context = to_device(context, self.observation_mean.device)
        tokens = torch.stack(
            [
                self.embed_observation((context.observations - self.observation_mean) / self.observation_std),
                self.embed_return(context.returns_to_go[..., None] * self.config.return_scale),
                self.embed_action(context.actions),
            ],
            2,
        )
        clock = self.embed_timestep(context.timesteps.clamp(max=self.config.timesteps - 1))
        x = self.norm_embedding((tokens + clock[:, :, None]).flatten(1, 2)[:, :-left_out])  # (B, T, 3, D) -> (B, N, D)
        visible = None if context.mask.shape[1] == 1 else _visible(context.mask, left_out)
        for block in self.blocks:
            x = block(x, visible)
        return x


def _visible(mask: Bool[Tensor, "batch time"], left_out: int) -> Bool[Tensor, "batch 1 tokens tokens"]:
    """Tokens see themselves and earlier ones, but no padding."""
    valid = mask.repeat_interleave(3, 1)[:, :-left_out]
    causal = torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=mask.device)  # else padding rows would be NaN
    return ((causal & valid[:, None, :]) | itself)[:, None]
