"""A compiler that costs nothing, for what must be compiled without being fast."""

from typing import Any

import pytest
import torch
from transformers import CompileConfig

from transformers_griffin.evaluation import methods


@pytest.fixture
def cheap_compiler(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Benchmarks compile with a backend that runs what it is given; returns the list of that."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    def compile_everywhere() -> CompileConfig:
        config = CompileConfig(backend=backend, mode=None)
        config._compile_all_devices = True
        return config

    monkeypatch.setattr(methods, "_compile_everywhere", compile_everywhere)
    return graphs
