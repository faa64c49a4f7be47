#!/usr/bin/env bash
# One call on a machine with a GPU: exactness on CUDA, with and without the kernels of `decoding/kernels`, then what the
# kernels save and what a cycle costs in the shape of a published target.
#
#   trainers/gpu_check.sh                                    llama-3-8b, results in runs/gpu
#   trainers/gpu_check.sh qwen2-7b runs/qwen2                another shape, another folder
#   PYTHON=.venv/bin/python trainers/gpu_check.sh            another interpreter
#
# It measures cycle cost and memory at prompts of 512 and 16k, with the whole head, with 32k tokens of it, the latter
# with kernels, and both in int8 with kernels; tree attention against sdpa at 8k; and the compaction's share of a cycle.
# Each of the five benchmarks takes at most TIME_BUDGET seconds (default 300), the rest some minutes. Nothing is
# downloaded. The interpreter needs torch with CUDA, transformers and pytest; where registries can be reached:
#
#   python3 -m venv .venv && .venv/bin/pip install -c constraints.txt torch && .venv/bin/pip install -e ".[test]"
#
# The package itself need not be installed. Not yet run.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "no GPU here"; print(torch.cuda.get_device_name())'
"$PYTHON" -m pytest -o addopts= -q tests/test_cuda.py
if "$PYTHON" -c 'import triton' 2> /dev/null; then  # the kernels, one by one and in decoding
    "$PYTHON" -m pytest -o addopts= -q -m "not slow" tests/decoding/kernels \
        tests/decoding/test_tree_attention_in_models.py tests/decoding/test_decoding_with_kernels.py \
        tests/decoding/test_drafting_with_kernels.py tests/decoding/test_compiled_with_kernels.py
fi
OUTPUT=${2:-runs/gpu}
bench() {  # folder, kernels, further arguments
    TRANSFORMERS_GRIFFIN_KERNELS=$2 "$PYTHON" -m transformers_griffin.cli bench --synthetic "$SHAPE" \
        --output "$OUTPUT/$1" --prompt-lengths 512 16384 --time-budget "${TIME_BUDGET:-300}" "${@:3}"
}
SHAPE=${1:-llama-3-8b}
bench all 0  # of the head that drafting reads
bench 32768 0 --draft-vocab-size 32768
if "$PYTHON" -c 'import triton' 2> /dev/null; then
    bench 32768-kernels 1 --draft-vocab-size 32768
    bench 32768-kernels-int8 1 --draft-vocab-size 32768 --draft-head-dtype int8
    bench all-kernels-int8 1 --draft-head-dtype int8
    CYCLE_MS=$("$PYTHON" -c 'import json, sys
print(1000 * min(row["cycle_seconds"] for row in json.load(open(sys.argv[1]))["rows"]))' "$OUTPUT/32768/synthetic.json")
    "$PYTHON" trainers/benchmark_kernels.py --cycle_ms "$CYCLE_MS"  # for the compaction's share of a cycle
fi
