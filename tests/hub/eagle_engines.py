"""
What serving engines make of an exported draft, in plain PyTorch and float32, written after their public loaders.

- vLLM: `vllm/model_executor/models/llama_eagle.py` (`EagleLlamaForCausalLM`) with `llama.py`;
- SGLang: `python/sglang/srt/models/llama_eagle.py` (`LlamaForCausalLMEagle`) with `llama.py`.

Both put "model." before every name in the file, load q, k, v into one matrix and gate, up into another, run a Llama
layer whose first input norm is the identity, and share embedding and LM head with the target. They differ in the bias
of `fc`.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import linear, silu


class EagleEngine:
    """
    Loads a directory and computes logits.

    Args:
        directory (`Path`): the export.
        target: a causal language model; its embedding and LM head are shared.
        engine (`str`): "vllm" or "sglang".

    Raises:
        KeyError: if vLLM does not know a name in the file.
    """

    def __init__(self, directory: Path, target, engine: str):
        self.config = json.loads((directory / "config.json").read_text())
        # vLLM turns LlamaForCausalLMEagle into EagleLlamaForCausalLM; SGLang takes it as it is.
        assert self.config["architectures"] == ["LlamaForCausalLMEagle"]
        assert self.config["model_type"] == "llama"
        # The Llama layer of both reads these as biases of the attention.
        assert not self.config.get("attention_bias")
        assert not self.config.get("bias")
        assert "qkv_bias" not in self.config
        self.embedding = target.get_input_embeddings().weight.detach()
        self.head = target.get_output_embeddings().weight.detach()
        self.head_dim = self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]
        self.parameters = self.allocate(has_fc_bias=engine == "sglang")
        self.loaded: set[str] = set()
        for name, weight in load_file(directory / "model.safetensors").items():
            self.load("model." + name, weight.float(), must_exist=engine == "vllm")

    def allocate(self, has_fc_bias: bool) -> dict[str, torch.Tensor]:
        """All parameters, not a number where the file must fill them."""
        c, d = self.config, self.config["hidden_size"]
        q_size, kv_size = c["num_attention_heads"] * self.head_dim, c["num_key_value_heads"] * self.head_dim
        shapes = {"model.fc.weight": (d, 2 * d)}
        if has_fc_bias:
            shapes["model.fc.bias"] = (d,)
        for i in range(c["num_hidden_layers"]):
            shapes |= {
                f"model.layers.{i}.self_attn.qkv_proj.weight": (q_size + 2 * kv_size, d),
                f"model.layers.{i}.self_attn.o_proj.weight": (d, q_size),
                f"model.layers.{i}.mlp.gate_up_proj.weight": (2 * c["intermediate_size"], d),
                f"model.layers.{i}.mlp.down_proj.weight": (d, c["intermediate_size"]),
                f"model.layers.{i}.post_attention_layernorm.weight": (d,),
            }
            if i > 0:
                shapes[f"model.layers.{i}.input_layernorm.weight"] = (d,)
        return {name: torch.full(shape, math.nan) for name, shape in shapes.items()}

    def load(self, name: str, weight: torch.Tensor, must_exist: bool) -> None:
        c, d = self.config, self.head_dim
        q_rows, kv_rows = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
        parts = {
            ".q_proj.": (".qkv_proj.", 0, q_rows),
            ".k_proj.": (".qkv_proj.", q_rows, kv_rows),
            ".v_proj.": (".qkv_proj.", q_rows + kv_rows, kv_rows),
            ".gate_proj.": (".gate_up_proj.", 0, c["intermediate_size"]),
            ".up_proj.": (".gate_up_proj.", c["intermediate_size"], c["intermediate_size"]),
        }
        self.loaded.add(name)
        for part, (whole, start, rows) in parts.items():
            if part in name:
                view = self.parameters[name.replace(part, whole)][start : start + rows]
                break
        else:
            if name not in self.parameters and not must_exist:
                return  # SGLang: "Parameter not found", and on
            view = self.parameters[name]
        assert view.shape == weight.shape
        view.copy_(weight)

    def logits(self, input_ids: torch.Tensor, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Of one sequence: `input_ids` and `positions` of shape `(len,)`, `hidden_states` of `(len, hidden_size)`."""
        p = self.parameters
        x = linear(
            torch.cat((self.embedding[input_ids], hidden_states), dim=-1), p["model.fc.weight"], p.get("model.fc.bias")
        )
        residual = None
        for i in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{i}."
            if residual is None:
                residual = x  # and the identity as input norm
            else:
                residual = residual + x
                x = self.norm(residual, p[layer + "input_layernorm.weight"])
            residual = residual + self.attend(x, positions, layer + "self_attn.")
            x = self.norm(residual, p[layer + "post_attention_layernorm.weight"])
            gate, up = linear(x, p[layer + "mlp.gate_up_proj.weight"]).chunk(2, dim=-1)
            x = linear(silu(gate) * up, p[layer + "mlp.down_proj.weight"])
        return linear(x + residual, self.head)

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.config["rms_norm_eps"]) * weight

    def attend(self, x: torch.Tensor, positions: torch.Tensor, prefix: str) -> torch.Tensor:
        num_heads, num_kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        qkv = linear(x, self.parameters[prefix + "qkv_proj.weight"]).view(len(x), -1, self.head_dim).transpose(0, 1)
        q, k, v = qkv.split((num_heads, num_kv_heads, num_kv_heads))  # each (heads, len, head_dim)
        q, k = self.rotate(q, positions), self.rotate(k, positions)
        k, v = (kv.repeat_interleave(num_heads // num_kv_heads, dim=0) for kv in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(self.head_dim)
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        attended = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v
        return linear(attended.transpose(0, 1).flatten(1), self.parameters[prefix + "o_proj.weight"])

    def rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Neox style: the first half of a head's channels is turned with the second."""
        angles = positions[:, None].float() * self.frequencies()
        first, second = x.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def frequencies(self) -> torch.Tensor:
        """Plain, or stretched as Llama 3.1 does."""
        exponents = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        plain = 1.0 / self.config["rope_theta"] ** exponents
        scaling = self.config["rope_scaling"]
        if scaling is None:
            return plain
        assert scaling["rope_type"] == "llama3"
        wave_lengths = 2 * math.pi / plain
        turns = scaling["original_max_position_embeddings"] / wave_lengths
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        share = ((turns - low) / (high - low)).clamp(0, 1)  # of the plain frequency
        return share * plain + (1 - share) * plain / scaling["factor"]
