"""An architecture of your own in one file: a GRU instead of a transformer, finetuned with PPO-DT.

    python examples/own_policy.py         # what check_policy says, then ten iterations

A `Policy` has `context_length`, `action_dim`, a call, and `next_return_to_go`; to be trained it is an `nn.Module`.
Nothing is inherited from dtune and nothing registered.
"""

import torch
from torch import Tensor, nn

import dtune
from dtune.data.steps import Steps
from dtune.models.distributions import TanhNormal


class GRUPolicy(nn.Module):
    """Reads (return-to-go, observation, action before) of each step, oldest first."""

    def __init__(self, observation_dim: int, action_dim: int, *, context_length: int = 8, width: int = 64):
        super().__init__()
        self.context_length, self.action_dim = context_length, action_dim
        self.embed = nn.Linear(1 + observation_dim + action_dim, width)
        self.cell = nn.GRUCell(width, width)
        self.head = nn.Linear(width, action_dim)
        self.log_std = nn.Parameter(torch.zeros(action_dim))
        # Environment units outside, the network's inside: buffers, so that a checkpoint has them.
        self.register_buffer("observation_std", torch.ones(observation_dim))
        self.register_buffer("return_scale", torch.tensor(0.001))

    def forward(self, context: Steps) -> TanhNormal:
        """π at every step of the window. An action is known to the step after it, never to its own."""
        acted = context.actions * context.mask[..., None]
        before = torch.cat([torch.zeros_like(acted[:, :1]), acted[:, :-1]], 1)
        returns = context.returns_to_go[..., None] * self.return_scale
        x = self.embed(torch.cat([returns, context.observations / self.observation_std, before], -1)).tanh()
        hidden, outputs = x.new_zeros(len(x), self.cell.hidden_size), []
        for time in range(x.shape[1]):  # padding stands in front: the state stays zero until the episode begins
            hidden = self.cell(x[:, time], hidden) * context.mask[:, time, None]
            outputs.append(hidden)
        mean = self.head(torch.stack(outputs, 1))
        return TanhNormal(mean, self.log_std.clamp(-5, 2).exp().expand_as(mean))

    def next_return_to_go(self, returns_to_go: Tensor, rewards: Tensor) -> Tensor:
        return returns_to_go - rewards


def run(iterations: int = 10, episodes: int = 8) -> list[dict[str, float]]:
    torch.manual_seed(0)
    policy = GRUPolicy(observation_dim=3, action_dim=1).eval()
    for finding in dtune.check_policy(policy, 3):
        print("right" if finding.passed else "WRONG", finding.name, finding.message)
    config = dtune.PPOConfig(
        return_to_go=-200.0, context_length=8, episodes_per_iteration=episodes, replay_capacity=2 * episodes,
        batch_size=256, update=dtune.UpdateConfig(ratio="token", optimizer="adamw", learning_rate=1e-3),
    )  # fmt: skip
    with dtune.GymnasiumSimulator("Pendulum-v1") as simulator:
        algorithm = dtune.PPO(policy, config, generator=torch.Generator().manual_seed(0))
        return dtune.finetune(algorithm, simulator, iterations=iterations, evaluation_episodes=4, quiet=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = run()
    largest = max(row["train/fresh_ratio_error"] for row in rows if "train/fresh_ratio_error" in row)
    print(f"return {rows[0]['eval/return']:.0f} before, {rows[-1]['eval/return']:.0f} after")
    print(f"largest deviation of a fresh ratio from 1: {largest:.1e}")
