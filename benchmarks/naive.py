"""Group rollouts and updates as they are commonly written: what `speed.py` compares with.

The loop is that of online-dt's evaluation: environments one after the other in Gymnasium's SyncVectorEnv, put back by
`set_state`; one eager call of the whole model a step, three tokens a step of context, of which the last is never read;
histories joined at every step; all environments until all have ended. Nothing is done to make it slow: it acts without
gradients, on windows no longer than the context.

The model is Hugging Face's GPT-2 between the embeddings and the heads, where `transformers` is installed; else the same
blocks written with PyTorch's own modules and attention.
"""

import warnings

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WIDTH, LAYERS, HEADS = 512, 4, 4


class EagerBlock(nn.Module):
    """A GPT-2 block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(self.before(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(*split, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


def trunk(width: int, layers: int) -> tuple[nn.Module, str]:
    """Blocks that take tokens `[batch, tokens, width]`, and what they are."""
    try:
        from transformers import GPT2Config, GPT2Model
    except ImportError:
        return nn.Sequential(*(EagerBlock(width) for _ in range(layers)), nn.LayerNorm(width)), "eager blocks"
    config = GPT2Config(
        vocab_size=1, n_embd=width, n_layer=layers, n_head=HEADS, n_inner=4 * width, activation_function="silu"
    )
    return GPT2Model(config), "Hugging Face GPT-2"


class NaiveTransformer(nn.Module):
    """A decision transformer that looks at every token of every step."""

    def __init__(self, observation_dim: int, action_dim: int, width: int = WIDTH, layers: int = LAYERS) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Linear(size, width) for size in (1, observation_dim, action_dim))
        self.norm, (self.trunk, self.kind) = nn.LayerNorm(width), trunk(width, layers)
        self.mean, self.log_std = nn.Linear(width, action_dim), nn.Linear(width, action_dim)
        self.eval()

    def forward(self, returns: Tensor, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-deviations `[batch, time, action]` of `[batch, time, …]`."""
        parts = zip(self.embed, (returns[..., None] / 1000, observations, actions), strict=True)
        tokens = self.norm(torch.stack([embed(part) for embed, part in parts], 2).flatten(1, 2))
        states = self.trunk(tokens) if self.kind == "eager blocks" else self.trunk(inputs_embeds=tokens)[0]
        states = states[:, 1::3]
        return self.mean(states), -5 + 3.5 * (self.log_std(states).tanh() + 1)


class NaiveGroups:
    """Hoppers put back to given states and walked on by the mean action; nobody falls out."""

    def __init__(self, model: NaiveTransformer, walks: int) -> None:
        self.model = model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are newer versions
            self.envs = gymnasium.make_vec(
                "Hopper-v4", walks, vectorization_mode="sync", vector_kwargs={}, terminate_when_unhealthy=False
            )
        self.envs.reset(seed=0)

    @torch.no_grad()
    def walk(self, qpos: np.ndarray, qvel: np.ndarray, steps: int, return_to_go: float) -> None:
        """`steps` steps from rows of positions and velocities."""
        for env, position, velocity in zip(self.envs.envs, qpos, qvel, strict=True):
            env.unwrapped.set_state(position, velocity)
        observations = torch.from_numpy(np.concatenate([qpos[:, 1:], qvel.clip(-10, 10)], 1)).float()[:, None]
        returns = torch.full((len(qpos), 1), return_to_go)
        actions, rewards = torch.zeros(len(qpos), 0, 3), torch.zeros(len(qpos), 0)
        for _ in range(steps):
            actions = torch.cat([actions, torch.zeros(len(qpos), 1, 3)], 1)
            mean, _ = self.model(returns[:, -1:], observations[:, -1:], actions[:, -1:])
            actions[:, -1] = mean[:, -1].tanh()
            seen, reward, *_ = self.envs.step(actions[:, -1].numpy())
            earned = torch.from_numpy(reward).float()[:, None]
            observations = torch.cat([observations, torch.from_numpy(seen).float()[:, None]], 1)
            rewards = torch.cat([rewards, earned], 1)
            returns = torch.cat([returns, returns[:, -1:] - earned], 1)


class NaiveUpdate:
    """A clipped update: the policy with gradients, the reference without, AdamW."""

    def __init__(self, model: NaiveTransformer, reference: NaiveTransformer) -> None:
        self.model, self.reference = model, reference
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)

    def step(self, rows: int, steps: int) -> None:
        """One gradient step on `rows` sub-trajectories of `steps` steps, a window each."""
        count, model = rows * steps, self.model
        observation_dim, action_dim = model.embed[1].in_features, model.embed[2].in_features
        window = (torch.randn(count, 1), torch.randn(count, 1, observation_dim), torch.randn(count, 1, action_dim))
        mean, log_std = model(*window)
        with torch.no_grad():
            other, other_log_std = self.reference(*window)
        raw = mean.detach() + torch.randn_like(mean) * log_std.exp().detach()
        log_prob = (-0.5 * ((raw - mean) / log_std.exp()).square() - log_std).sum((-2, -1)).view(rows, steps).sum(1)
        ratio = (log_prob - log_prob.detach()).exp()
        kl = (other_log_std - log_std + (log_std.exp().square() + (mean - other).square()) / 2).mean()
        self.optimizer.zero_grad()
        (-(ratio * torch.randn(rows)).mean() + 1e-3 * kl).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        self.optimizer.step()
