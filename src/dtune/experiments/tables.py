"""The paper's Tables 5, 6 and 7: hold this file beside the page.

Every number of the paper occurs here once. What a table gives to all rows alike, Table 5 and App. B.1 above all, is the
default of a class; what it gives to some worlds alone is an argument of their rows.
"""

from dataclasses import dataclass

from dtune.algorithms.grpo import GRPOConfig
from dtune.algorithms.ppo import PPOConfig
from dtune.algorithms.update import UpdateConfig

# --- Table 5: the network --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size of the network (Table 5; a Reinformer's is its authors')."""

    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads a block; must divide `width`."""
    width: int = 512
    """Embedding dimension."""
    dropout: float = 0.1
    """Share dropped in pretraining; finetuning drops nothing."""


# --- Table 6: GRPO-DT ------------------------------------------------------------------------------------------


def _grpo(
    n_batch: int, c_offline: int, c_online: int, g_online: int, L_traj: int, L_eval: int, gamma: float,
    epsilon: float, delta_r: float, lr_policy: float, kappa_initial: float, trajectories: int = 1,
) -> tuple[int, GRPOConfig]:  # fmt: skip
    """A row of Table 6; `trajectories` are App. B.1's: 1 an iteration in MuJoCo and AntMaze, 5 in Adroit."""
    update = UpdateConfig(learning_rate=lr_policy, clip_range=epsilon, entropy_coef=kappa_initial)
    return c_offline, GRPOConfig(
        batch_size=n_batch, context_length=c_online, return_to_go=float(g_online), subtrajectory_length=L_traj,
        lookahead_length=L_eval, gamma=gamma, return_margin=delta_r, episodes_per_iteration=trajectories,
        update=update,
    )  # fmt: skip


# fmt: off
TABLE_6 = {
    #                               n_batch c_off c_on g_online L_traj L_eval    γ    ε  Δ_r    lr     κ  B.1
    "hopper-medium-v2":          _grpo(256, 20, 1,  7200, 15, 400, 0.995, 0.2, 2.0, 5e-5, 0.20),
    "hopper-medium-replay-v2":   _grpo(256, 20, 1,  7200, 15, 400, 0.995, 0.2, 2.0, 5e-5, 0.20),
    "hopper-random-v2":          _grpo(256, 20, 1,  7200, 15, 400, 0.995, 0.2, 2.0, 5e-5, 0.20),
    "walker2d-medium-v2":        _grpo(256, 20, 1, 10000, 15, 400, 0.995, 0.3, 2.0, 5e-5, 0.04),
    "walker2d-medium-replay-v2": _grpo(256, 20, 1, 10000, 15, 400, 0.995, 0.3, 2.0, 5e-5, 0.04),
    "walker2d-random-v2":        _grpo(256, 20, 1, 10000, 15, 400, 0.995, 0.3, 2.0, 5e-5, 0.20),
    "ant-medium-v2":             _grpo(256, 20, 1, 12000, 15, 200, 0.995, 0.3, 2.0, 5e-5, 0.04),
    "ant-medium-replay-v2":      _grpo(256, 20, 1, 12000, 15, 200, 0.995, 0.3, 2.0, 5e-5, 0.04),
    "ant-random-v2":             _grpo(256, 20, 1, 12000, 15, 200, 0.995, 0.3, 2.0, 5e-5, 0.20),
    "door-cloned-v1":            _grpo(512,  5, 1,  3000, 10, 100, 0.990, 0.3, 0.5, 3e-5, 0.10, 5),
    "door-human-v1":             _grpo(512,  5, 1,  3000, 10, 100, 0.990, 0.3, 0.4, 3e-5, 0.04, 5),
    "pen-cloned-v1":             _grpo(512,  5, 1,  6000,  3,  30, 0.990, 0.3, 0.0, 3e-5, 0.02, 5),
    "pen-human-v1":              _grpo(512,  5, 1,  6000,  3,  30, 0.990, 0.3, 0.0, 3e-5, 0.02, 5),
    "hammer-cloned-v1":          _grpo(512,  5, 5,  4000, 10, 100, 0.990, 0.3, 0.0, 3e-5, 0.05, 5),
    "hammer-human-v1":           _grpo(512,  5, 5,  4000, 10, 100, 0.990, 0.3, 0.8, 3e-5, 0.05, 5),
    "antmaze-umaze-v2":          _grpo(256,  5, 1,     2, 10, 200, 1.000, 0.2, 0.0, 5e-5, 0.05),
    "antmaze-umaze-diverse-v2":  _grpo(256,  1, 5,     2, 10, 200, 1.000, 0.2, 0.0, 5e-5, 0.05),  # swapped? readings
}
# fmt: on


# --- Table 7: PPO-DT -------------------------------------------------------------------------------------------


def _ppo(
    n_batch: int, c_offline: int, c_online: int, g_online: int, K_ppo: int, lr_policy: float, lr_value: float,
    kappa_initial: float, value_width: int = 256, layer_norm: bool = False,
) -> tuple[int, PPOConfig]:  # fmt: skip
    """A row of Table 7; the value network's width is Table 5's, its LayerNorm App. B.1's: Adroit and AntMaze."""
    update = UpdateConfig(ratio="token", learning_rate=lr_policy, clip_range=0.2, entropy_coef=kappa_initial)
    return c_offline, PPOConfig(
        batch_size=n_batch, context_length=c_online, return_to_go=float(g_online), episodes_per_iteration=K_ppo,
        replay_capacity=4 * K_ppo, value_learning_rate=lr_value, value_width=value_width, value_layer_norm=layer_norm,
        update=update,
    )  # fmt: skip


# fmt: off
TABLE_7 = {
    #                              n_batch c_off c_on g_online K_ppo   lr  lr_value  κ   Table 5  B.1
    "hopper-medium-v2":          _ppo(256, 20, 1,  7200,  8, 5e-5, 1e-3, 0.020),
    "hopper-medium-replay-v2":   _ppo(256, 20, 1,  7200,  8, 5e-5, 1e-3, 0.020),
    "hopper-random-v2":          _ppo(256, 20, 1,  7200,  8, 5e-5, 1e-3, 0.040),
    "walker2d-medium-v2":        _ppo(256, 20, 1, 10000,  8, 5e-5, 1e-3, 0.020),
    "walker2d-medium-replay-v2": _ppo(256, 20, 1, 10000,  8, 5e-5, 1e-3, 0.020),
    "walker2d-random-v2":        _ppo(256, 20, 1, 10000,  8, 5e-5, 1e-3, 0.200),
    "ant-medium-v2":             _ppo(256, 20, 1, 12000,  8, 5e-5, 1e-3, 0.020),
    "ant-medium-replay-v2":      _ppo(256, 20, 1, 12000,  8, 5e-5, 1e-3, 0.020),
    "ant-random-v2":             _ppo(256, 20, 1, 12000,  8, 5e-5, 1e-3, 0.020),
    "door-cloned-v1":            _ppo(512,  5, 1,  3000, 16, 3e-5, 2e-4, 0.002, 512, True),
    "door-human-v1":             _ppo(512,  5, 1,  3000, 16, 3e-5, 2e-4, 0.002, 512, True),
    "pen-cloned-v1":             _ppo(512,  5, 1,  6000,  8, 3e-5, 2e-4, 0.040, 512, True),
    "pen-human-v1":              _ppo(512,  5, 1,  6000,  8, 3e-5, 2e-4, 0.040, 512, True),
    "hammer-cloned-v1":          _ppo(512,  5, 5,  4000, 16, 3e-5, 2e-4, 0.005, 512, True),
    "hammer-human-v1":           _ppo(512,  5, 5,  4000, 16, 3e-5, 2e-4, 0.005, 512, True),
    "antmaze-umaze-v2":          _ppo(256,  5, 1,     2,  8, 5e-5, 1e-3, 0.020, 512, True),
    "antmaze-umaze-diverse-v2":  _ppo(256,  1, 5,     2,  8, 5e-5, 1e-3, 0.020, 512, True),
}
# fmt: on
