"""Writes decision_transformer.json: outputs of Hugging Face's GPT-2 at the paper's size, for test_golden.py.

`python tests/models/golden/decision_transformer.py`, with `transformers` installed (5.23.0 wrote the file). Nothing
here comes from dtune but formulas for weights and inputs, which need no random numbers and are the same everywhere.
"""

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

OBSERVATION, ACTION, WIDTH, HEADS, LAYERS, BATCH, TIME, PADDING = 11, 3, 512, 4, 4, 2, 20, 7
BLOCK = {
    "norm_attention": ("ln_1", (WIDTH,)), "qkv": ("attn.c_attn", (3 * WIDTH, WIDTH)),
    "project": ("attn.c_proj", (WIDTH, WIDTH)), "norm_mlp": ("ln_2", (WIDTH,)),
    "expand": ("mlp.c_fc", (4 * WIDTH, WIDTH)), "contract": ("mlp.c_proj", (WIDTH, 4 * WIDTH)),
}  # fmt: skip
"""Layers of a block: our name, GPT-2's name, shape of the weight as `[out, in]`."""


def wave(index: int, *shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
    """Numbers without pattern: scale · sin of something incommensurable, from a formula."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (
        (offset + scale * torch.sin(12.9898 * count + 78.233 * (index + 1) + 1e-3 * count.square())).view(shape).float()
    )


def weights() -> dict[str, Tensor]:
    """The whole network under dtune's names."""
    layers = {"embed_return": (WIDTH, 1), "embed_observation": (WIDTH, OBSERVATION), "embed_action": (WIDTH, ACTION)}
    layers |= {"norm_embedding": (WIDTH,)}
    layers |= {f"blocks.{layer}.{name}": shape for layer in range(LAYERS) for name, (_, shape) in BLOCK.items()}
    layers |= {"norm_final": (WIDTH,), "head_mean": (ACTION, WIDTH), "head_log_std": (ACTION, WIDTH)}
    found = {}
    for index, (name, shape) in enumerate(layers.items()):
        norm = len(shape) == 1
        scale = 0.2 if norm else 1.2 / shape[-1] ** 0.5
        found[f"{name}.weight"] = wave(2 * index, *shape, scale=scale, offset=float(norm))
        found[f"{name}.bias"] = wave(2 * index + 1, shape[0], scale=0.1)
    return found


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns-to-go in thousands, normalised observations, actions, mask; the second row is padded in front."""
    mask = torch.ones(BATCH, TIME, dtype=torch.bool)
    mask[1, :PADDING] = False
    returns, observations = 3.6 + wave(90, BATCH, TIME), wave(91, BATCH, TIME, OBSERVATION, scale=1.5)
    return returns, observations, wave(92, BATCH, TIME, ACTION, scale=0.9), mask


def hugging_face(state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Means and raw log deviations of GPT-2 with the embeddings, activation and heads of a decision transformer."""
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=1,
        n_positions=3 * TIME,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        activation_function="silu",
        eos_token_id=None,
        bos_token_id=None,
    )
    model = GPT2Model(config).eval()
    model.wpe.weight.data.zero_()
    for layer, block in enumerate(model.h):
        for ours, (theirs, _) in BLOCK.items():
            target = block.get_submodule(theirs)
            weight = state[f"blocks.{layer}.{ours}.weight"]
            target.weight.data.copy_(weight if weight.ndim == 1 else weight.T)  # GPT-2 multiplies from the right
            target.bias.data.copy_(state[f"blocks.{layer}.{ours}.bias"])
    model.ln_f.weight.data.copy_(state["norm_final.weight"])
    model.ln_f.bias.data.copy_(state["norm_final.bias"])
    returns, observations, actions, mask = inputs()
    parts = zip(("return", "observation", "action"), (returns[..., None], observations, actions), strict=True)
    tokens = torch.stack(
        [linear(x, state[f"embed_{name}.weight"], state[f"embed_{name}.bias"]) for name, x in parts], 2
    ).flatten(1, 2)
    tokens = layer_norm(tokens, (WIDTH,), state["norm_embedding.weight"], state["norm_embedding.bias"])
    hidden = model(inputs_embeds=tokens, attention_mask=mask.repeat_interleave(3, 1).long()).last_hidden_state[:, 1::3]
    mean, log_std = (
        linear(hidden, state[f"head_{name}.weight"], state[f"head_{name}.bias"]) for name in ("mean", "log_std")
    )
    return mean, log_std


if __name__ == "__main__":
    with torch.no_grad():
        mean, log_std = hugging_face(weights())
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"mean": mean.tolist(), "log_std": log_std.tolist()}) + "\n")
