"""What several test files share: the golden fixtures, a tiny target, and no tolerance for deprecated calls."""

import json
import logging
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch


# Triton decides when it is imported whether its kernels run in the interpreter, and transformers may import it.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

import transformers.utils.hub
from huggingface_hub import constants
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hub.hub_server import HubServer
from transformers_griffin import GriffinDraftModel, convert_checkpoint


# Triton exists for Linux only; nowhere else are there kernels to test.
collect_ignore_glob = [] if find_spec("triton") else ["decoding/kernels/test_*.py"]


GOLDEN = Path(__file__).parent / "fixtures" / "golden"
GOLDEN_CASES = ("llama_mha", "llama_gqa", "qwen2_bias")


def golden_target(name: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / name / "target").eval()


def golden_case(name: str) -> tuple[PreTrainedModel, GriffinDraftModel]:
    """The target of a golden case and its released draft, converted and bound; fresh objects at every call."""
    target = golden_target(name)
    return target, convert_checkpoint(GOLDEN / name / "draft_official", target=target)


def golden_tensors(name: str, file: str) -> dict[str, torch.Tensor]:
    """The tensors of `<file>.safetensors` of a golden case."""
    return load_file(GOLDEN / name / f"{file}.safetensors")


def golden_json(name: str, file: str) -> Any:
    """The content of `<file>.json` of a golden case."""
    return json.loads((GOLDEN / name / f"{file}.json").read_text())


def tiny_llama(seed: int = 0, **config_overrides: Any) -> LlamaForCausalLM:
    """A random Llama of 2 layers, hidden size 32, 4 heads and 61 tokens."""
    fields = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(fields | config_overrides))).eval()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[HubServer]:
    """A Hub of this test's own, which the clients in this process talk to, logged in as alice, with an empty cache."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # files go over HTTP
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)  # between retries
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        yield server
        assert not server.errors


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of a tiny target with a tokenizer of the words w0 ... w60, and of a draft for it."""
    directory = tmp_path_factory.mktemp("pair")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    target = tiny_llama()
    target.save_pretrained(directory / "target")
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0").save_pretrained(directory / "target")
    draft = GriffinDraftModel.from_target(target)
    draft.generation_config.num_assistant_tokens = 8
    draft.generation_config.draft_tree_depth = 3
    draft.generation_config.draft_tree_top_k = 2
    draft.save_pretrained(directory / "draft")
    return directory


class _FailOnDeprecation(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecated" in message:
            raise AssertionError(f"transformers calls something deprecated: {message}")


@pytest.fixture(autouse=True)
def no_deprecated_calls() -> Iterator[None]:
    """A deprecation warning of transformers fails the test that causes it."""
    handler = _FailOnDeprecation(level=logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
