"""Acts in Gymnasium's Hopper with an exported policy; of dtune and torch it needs nothing.

dtune export runs/grpo/hopper-random-v2/small/seed3 --out policy.onnx
python examples/act_with_onnx.py policy.onnx [return to ask for]
"""

import sys

import gymnasium
import numpy as np
import onnxruntime

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}

if len(sys.argv) not in (2, 3):
    sys.exit(f"usage: {__doc__}")
session = onnxruntime.InferenceSession(sys.argv[1])
window = {input.name: np.zeros([1, *input.shape[1:]], DTYPES[input.type]) for input in session.get_inputs()}
known = session.get_modelmeta().custom_metadata_map.get("return_to_go")  # asked for when it was trained
if known is None and len(sys.argv) < 3:
    sys.exit(f"{sys.argv[1]} does not say which return to ask for: give it as the second argument")
return_to_go = float(sys.argv[2] if len(sys.argv) > 2 else known)
env = gymnasium.make("Hopper-v5")
observation, _ = env.reset(seed=0)
earned, timestep, ended = 0.0, 0, False
while not ended:
    now = {"observations": observation, "returns_to_go": return_to_go, "timesteps": timestep, "mask": True}
    for name, rows in window.items():  # the newest step stands last; its action is not known yet
        rows[0] = np.roll(rows[0], -1, axis=0)
        rows[0, -1] = now.get(name, 0)
    action, _, _, asked = session.run(["action", "mean", "std", "return_to_go"], window)
    window["actions"][0, -1], window["returns_to_go"][0, -1] = action[0], asked[0]
    observation, reward, terminated, truncated, _ = env.step(action[0])
    return_to_go, timestep, earned = float(asked[0]) - reward, timestep + 1, earned + reward
    ended = terminated or truncated
print(f"return {earned:.6f} in {timestep} steps")
