"""GRPO-DT on a Gymnasium environment: a run that was killed goes on as if it had not been."""

import os
import signal
import subprocess
import sys

from tiny import environment, outcome

SCRIPT = """
import os, signal, sys
import torch, dtune, gymworlds

torch.set_num_threads(1)
killed_at = int(sys.argv[2])

class Mortal(dtune.GRPO):
    def _optimise(self):
        if self.iteration == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._optimise()

shape = dtune.DecisionTransformerConfig(observation_dim=2, action_dim=1, layers=1, heads=1, width=8)
policy = dtune.DecisionTransformer(shape, torch.Generator().manual_seed(0))
config = dtune.GRPOConfig(
    return_to_go=0, replay_capacity=3, reset_trajectories=2, reset_points=1, group_size=2, subtrajectory_length=3,
    lookahead_length=3, return_margin=0, subtrajectory_capacity=8, batch_size=4,
)
with dtune.GymnasiumSimulator(gymworlds.drift) as simulator:
    algorithm = Mortal(policy, config)
    dtune.finetune(
        algorithm, simulator, iterations=6, directory=sys.argv[1], evaluate_every=2, evaluation_episodes=2, quiet=True
    )
"""


def run(folder, killed_at=-1):
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(killed_at)],
        env=environment(folder) | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_a_run_killed_in_the_middle_ends_with_the_same_bytes(tmp_path):
    """Snapshots of the replay come back from the checkpoint, into environments of another process."""
    undisturbed = run(tmp_path / "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert run(tmp_path / "killed", killed_at=5).returncode == -signal.SIGKILL
    assert len((tmp_path / "killed" / "metrics.csv").read_text().splitlines()) < 8
    again = run(tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "undisturbed")
