"""
Tiny random targets that read images, with prompts in which images of several sizes stand at several places.

The Qwen targets and GLM-4V count positions in three dimensions (M-RoPE): an image takes as many tokens as it has
patches, but advances the position by its longer side only, so that the rows of a batch end at positions of their own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from architectures import COMMON, VOCAB_SIZE, enlarge_weights
from batches import PAD
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel


IMAGE_TOKEN = VOCAB_SIZE - 1
IMAGE_SIDE, PATCH_SIDE = 8, 4  # pixels
SQUARE, WIDE, LARGE = (4, 4), (2, 6), (6, 6)  # patches of an image: rows, columns; 2 x 2 of them make a token

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIDE,
    "patch_size": PATCH_SIDE,
}
PATCHES = {
    "depth": 2,
    "num_heads": 2,
    "hidden_size": 16,
    "patch_size": PATCH_SIDE,
    "temporal_patch_size": 1,
    "spatial_merge_size": 2,
}
OUT = {"intermediate_size": 16, "out_hidden_size": COMMON["hidden_size"]}


def _mrope(*sections: int, **others: Any) -> dict[str, Any]:
    """Frequencies for time, rows and columns; heads of size 8 have four."""
    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}
    return {"rope_parameters": parameters | others}


@dataclass(frozen=True, eq=False)
class ImageTarget:
    """One row of the table."""

    name: str
    model_type: str
    text_config: dict[str, Any]
    vision_config: dict[str, Any]
    config: dict[str, Any]
    has_mrope: bool = True
    marks_images: str | None = "mm_token_type_ids"  # the argument that tells images from text
    seed: int = 0

    def make(self) -> PreTrainedModel:
        """The target in evaluation mode; the same at every call."""
        torch.manual_seed(self.seed)
        config = AutoConfig.for_model(
            self.model_type,
            text_config=COMMON | self.text_config,
            vision_config=self.vision_config,
            image_token_id=IMAGE_TOKEN,
            **self.config,
        )
        target = AutoModelForImageTextToText.from_config(config).eval()
        enlarge_weights(target, self.seed)
        target.generation_config.update(pad_token_id=PAD, bos_token_id=None, eos_token_id=None)
        return target

    def inputs(self, prompts: list[list[Any]], seed: int = 0) -> dict[str, torch.Tensor]:
        """
        Arguments of `generate()` for prompts, left-padded.

        Args:
            prompts (`list[list]`): tokens and, where an image stands, its `(rows, columns)` of patches. Targets
                without M-RoPE know one size of images and take all for such.
            seed (`int`): of the pixels; image `i` of the batch is drawn with `seed + i`.
        """
        rows = [self._tokens_of(prompt) for prompt in prompts]
        longest = max(map(len, rows))
        input_ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        grids = [part for prompt in prompts for part in prompt if isinstance(part, tuple)]
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        if self.marks_images is not None:
            inputs[self.marks_images] = (input_ids == IMAGE_TOKEN).long()
        if not grids:
            return inputs
        if self.has_mrope:
            inputs["image_grid_thw"] = torch.tensor([(1, *grid) for grid in grids])
        return inputs | {"pixel_values": torch.cat([self._pixels(grid, seed + i) for i, grid in enumerate(grids)])}

    def _tokens_of(self, prompt: list[Any]) -> list[int]:
        tokens = []
        for part in prompt:
            tokens += [IMAGE_TOKEN] * self._num_tokens(part) if isinstance(part, tuple) else [part]
        return tokens

    def _num_tokens(self, grid: tuple[int, int]) -> int:
        return grid[0] * grid[1] // 4 if self.has_mrope else 4

    def _pixels(self, grid: tuple[int, int], seed: int) -> torch.Tensor:
        shape = (grid[0] * grid[1], 3 * PATCH_SIDE**2) if self.has_mrope else (1, 3, IMAGE_SIDE, IMAGE_SIDE)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LLAVA = ImageTarget(
    "LLaVA",
    "llava",
    {"model_type": "llama"},
    {"model_type": "clip_vision_model", "projection_dim": 16} | VISION,
    {"image_seq_length": 4, "vision_feature_layer": -1},
    has_mrope=False,
    marks_images=None,
)
GEMMA3 = ImageTarget(
    "Gemma 3, alternating windows",
    "gemma3",
    {"head_dim": 8, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    {"model_type": "siglip_vision_model"} | VISION,
    {"mm_tokens_per_image": 4},
    has_mrope=False,
    marks_images="token_type_ids",  # it sees an image in both directions
)
QWEN2_VL = ImageTarget(
    "Qwen2-VL",
    "qwen2_vl",
    _mrope(1, 1, 2),
    PATCHES | {"embed_dim": 16, "hidden_size": COMMON["hidden_size"]},
    {},
)
QWEN25_VL = ImageTarget(
    "Qwen2.5-VL, later layers with window",
    "qwen2_5_vl",
    _mrope(1, 1, 2) | {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    PATCHES | OUT | {"window_size": 16, "fullatt_block_indexes": [1]},
    {},
)
QWEN3_VL = ImageTarget(
    "Qwen3-VL, images in several layers",
    "qwen3_vl",
    _mrope(2, 1, 1, mrope_interleaved=True) | {"head_dim": 8},
    PATCHES | OUT | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    {},
    seed=1,
)
GLM4V = ImageTarget(
    "GLM-4V",
    "glm4v",
    _mrope(1, 1, 2, partial_rotary_factor=1.0),
    PATCHES | OUT | {"image_size": 32},
    {},
)
IMAGE_TARGETS = (LLAVA, GEMMA3, QWEN2_VL, QWEN25_VL, QWEN3_VL, GLM4V)
