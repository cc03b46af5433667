"""Settings of the wrong kind are refused where they are said, in whatever config."""

import subprocess
import sys

SCRIPT = """
import dtune
import numpy as np
from dtune.errors import ConfigError
for config, settings in (
    (dtune.GRPOConfig, dict(return_to_go="x")),
    (dtune.GRPOConfig, dict(return_to_go=3, group_size=2.5)),
    (dtune.GRPOConfig, dict(return_to_go=3, batch_size=True)),
    (dtune.DecisionTransformerConfig, dict(observation_dim="3", action_dim=1)),
    (dtune.PPOConfig, dict(return_to_go=None)),
    (dtune.PPOConfig, dict(return_to_go=float("nan"))),
    (dtune.PPOConfig, dict(return_to_go=np.float32(3), batch_size=np.int64(4), window_length=None)),
):
    try:
        print(config(**settings).batch_size)
    except ConfigError as error:
        print(error)
"""


def test_a_number_of_another_type_is_a_sentence():
    """In a process without the checks of types that tests run under."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "return_to_go must be a number, got 'x'",
        "group_size must be a whole number, got 2.5",
        "batch_size must be a whole number, got True",
        "observation_dim must be a whole number, got '3'",
        "return_to_go must be a number, got None",
        "return_to_go must be a finite number, got nan: give one, however large",
        "4",
    ]
