"""
Tiny random targets of many transformers architectures, made so that a wrong mask, position or cache entry shows.

Freshly initialised models hardly attend and nearly tie between tokens. [`make_target`] therefore draws larger weights:
attention is far from uniform, every layer moves the logits, and the best token leads clearly. Sliding windows are
shorter than the trees and much shorter than the texts.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


VOCAB_SIZE = 128
SLIDING_WINDOW = 12

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
WINDOW = {"sliding_window": SLIDING_WINDOW}
ALTERNATING = WINDOW | {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
LATER_LAYERS_WINDOW = WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
MOE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
SHARED_CACHES = ALTERNATING | {
    "head_dim": 8,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB_SIZE,
}
GPT = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 512, "n_inner": 48}


@dataclass(frozen=True, eq=False)
class Architecture:
    """One row of the table."""

    name: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    mode: str = "tree"  # what its targets verify, "tree" or "chain"
    takes_plain_cache: bool = True  # whether transformers itself takes a `DynamicCache()` that has seen no config
    seed: int = 0  # of its weights; chosen where 0 gives a target that repeats one token


ARCHITECTURES = (
    Architecture("Llama", "llama"),
    Architecture("Mistral, window", "mistral", WINDOW),
    Architecture("Ministral, alternating windows", "ministral", ALTERNATING | {"head_dim": 8}),
    Architecture("Mixtral, window", "mixtral", MOE | WINDOW),
    Architecture("Qwen2, later layers with window", "qwen2", LATER_LAYERS_WINDOW),
    Architecture("Qwen2-MoE", "qwen2_moe", MOE | {"shared_expert_intermediate_size": 24}),
    Architecture("Qwen3, later layers with window", "qwen3", LATER_LAYERS_WINDOW | {"head_dim": 8}, seed=1),
    Architecture("Qwen3-MoE", "qwen3_moe", MOE | {"head_dim": 8}),
    Architecture("Gemma", "gemma", {"head_dim": 8}),
    Architecture("Gemma 2, soft caps, alternating windows", "gemma2", ALTERNATING | {"head_dim": 8}),
    Architecture("Gemma 3, alternating windows", "gemma3_text", ALTERNATING | {"head_dim": 8}),
    Architecture(
        "Gemma 3n, layers that share caches",
        "gemma3n_text",
        SHARED_CACHES | {"laurel_rank": 4, "altup_num_inputs": 2},
    ),
    Architecture("Gemma 4, layers that share caches", "gemma4_text", SHARED_CACHES | {"global_head_dim": 8}),
    Architecture("Phi", "phi"),
    Architecture("Phi-3, window", "phi3", WINDOW),
    Architecture("PhiMoE, window", "phimoe", MOE | WINDOW),
    Architecture("OLMo", "olmo"),
    Architecture("OLMo-2", "olmo2", seed=1),
    Architecture("OLMo-3, alternating windows", "olmo3", ALTERNATING),
    Architecture("OLMoE", "olmoe", MOE),
    Architecture("Granite", "granite", {"logits_scaling": 2.0}),
    Architecture("GraniteMoE", "granitemoe", MOE),
    Architecture("Cohere", "cohere", {"logit_scale": 0.5}),
    Architecture("Cohere 2, alternating windows", "cohere2", ALTERNATING | {"logit_scale": 0.5}),
    Architecture("GPT-NeoX", "gpt_neox"),
    Architecture("GPT-2, learned positions", "gpt2", GPT),
    Architecture("GPT-BigCode", "gpt_bigcode", GPT, seed=1),
    Architecture("OPT, learned positions", "opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, seed=1),
    Architecture("Falcon, rotary", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, seed=3),
    Architecture("Falcon, ALiBi", "falcon", {"alibi": True, "bias": True}, mode="chain"),
    Architecture("StarCoder2, window", "starcoder2", WINDOW),
    Architecture("StableLM", "stablelm"),
    Architecture("SmolLM3, layers without positions", "smollm3", {"no_rope_layer_interval": 2}),
    Architecture("GLM-4", "glm4", {"head_dim": 8}),
    Architecture("GLM-4 MoE", "glm4_moe", MOE | {"head_dim": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}),
    Architecture("ERNIE 4.5", "ernie4_5"),
    Architecture("Apertus", "apertus"),
    Architecture("Arcee", "arcee", seed=1),
    Architecture("NanoChat", "nanochat"),
    Architecture("MiniMax-M2", "minimax_m2", MOE | {"head_dim": 8}),
    Architecture("MiMo-V2, sinks, alternating windows", "mimo_v2_flash", MOE | ALTERNATING | {"head_dim": 8}),
    Architecture("Exaone 4, alternating windows", "exaone4", ALTERNATING),
    Architecture("Nemotron", "nemotron"),
    Architecture("DeepSeek-V2, latent attention", "deepseek_v2", MOE | LATENT | {"first_k_dense_replace": 1}),
    Architecture("DeepSeek-V3, latent attention", "deepseek_v3", MOE | LATENT | {"first_k_dense_replace": 1}),
    Architecture(
        "DeepSeek-V3.2, sparse attention",
        "deepseek_v32",
        # With 4 heads the indexer's scores, sums of rectified ones, are often exactly 0 for several tokens. Which of
        # equal scores are among the top 16 depends on the shape of the forward, in any precision.
        MOE | LATENT | {"first_k_dense_replace": 1, "index_topk": 16, "index_n_heads": 32, "index_head_dim": 16},
        mode="chain",
        takes_plain_cache=False,
    ),
    Architecture(
        "LongCat-Flash, two attentions a layer",
        "longcat_flash",
        MOE
        | LATENT
        | {"head_dim": 8, "num_layers": 2, "num_hidden_layers": 4, "ffn_hidden_size": 48}
        | {"expert_ffn_hidden_size": 24, "zero_expert_num": 2, "moe_topk": 2},
    ),
    Architecture("GPT-OSS, sinks, alternating windows", "gpt_oss", MOE | ALTERNATING | {"head_dim": 8}),
    Architecture(
        "Llama 4, attention chunks", "llama4_text", MOE | {"attention_chunk_size": 16, "head_dim": 8}, "chain"
    ),
    Architecture("GPT-J", "gptj", GPT | {"rotary_dim": 4}, mode="chain"),
    Architecture(
        "GPT-Neo, local attention",
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 12},
        mode="chain",
    ),
    Architecture("Bloom, ALiBi", "bloom", mode="chain", seed=1),
    Architecture("MPT, ALiBi", "mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}, mode="chain"),
)


def make_target(architecture: Architecture, attn_implementation: str | None = None) -> PreTrainedModel:
    """A random target in evaluation mode; the same at every call."""
    torch.manual_seed(architecture.seed)  # of what stays as transformers draws it: sinks, biases of routers
    config = AutoConfig.for_model(architecture.model_type, **(COMMON | architecture.config))
    target = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).eval()
    target.generation_config.update(pad_token_id=0, bos_token_id=None, eos_token_id=None, use_cache=True)
    enlarge_weights(target, architecture.seed)
    return target


@torch.no_grad()
def enlarge_weights(target: PreTrainedModel, seed: int) -> None:
    """Matrices that amplify a little, vectors off their neutral value, and an untied head with logits of size 3."""
    generator = torch.Generator().manual_seed(seed)
    for _, weight in sorted(target.named_parameters()):
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() >= 2:
            weight.copy_(1.5 * noise / min(weight.shape[-2:]) ** 0.5)
        else:
            weight.add_(0.1 * noise)
    head = target.get_output_embeddings()
    head.weight = nn.Parameter(3.0 * torch.randn(head.weight.shape, generator=generator) / head.weight.shape[1] ** 0.5)


def make_prompt(length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens of shape `(1, length)`, none of them the padding."""
    return torch.randint(1, VOCAB_SIZE, (1, length), generator=torch.Generator().manual_seed(seed))
