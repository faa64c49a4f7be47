#!/usr/bin/env bash
# One call on a machine with a GPU: exactness on CUDA, with and without the kernels of `decoding/kernels`, then what the
# kernels save and what a cycle costs in the shape of a published target.
#
#   trainers/gpu_check.sh                                    llama-3-8b, results in runs/gpu
#   trainers/gpu_check.sh qwen2-7b runs/qwen2                another shape, another folder
#   trainers/gpu_check.sh llama-3-8b runs/gpu tests all      some parts only, where a call may not take long
#   PYTHON=.venv/bin/python trainers/gpu_check.sh            another interpreter
#
# The parts, in order:
#
#   tests                 exactness on CUDA, and the kernels one by one and in decoding
#   all, 32768            cycle cost and memory at prompts of 512 and 16k, with the whole head and with 32k tokens of it
#   32768-kernels         the latter with kernels
#   32768-kernels-int8, all-kernels-int8    both with kernels and the head in int8
#   kernels               each kernel against PyTorch; tree attention at 8k; the compaction's share of a cycle
#
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
SHAPE=${1:-llama-3-8b}
OUTPUT=${2:-runs/gpu}
PARTS=("${@:3}")
if [[ ${#PARTS[@]} == 0 ]]; then
    PARTS=(tests all 32768 32768-kernels 32768-kernels-int8 all-kernels-int8 kernels)
fi
HAS_TRITON=$("$PYTHON" -c 'import importlib.util; print(int(importlib.util.find_spec("triton") is not None))')

run_tests() {
    "$PYTHON" -m pytest -o addopts= -q tests/test_cuda.py
    if [[ $HAS_TRITON == 1 ]]; then
        "$PYTHON" -m pytest -o addopts= -q -m "not slow" tests/decoding/kernels \
            tests/decoding/test_tree_attention_in_models.py tests/decoding/test_decoding_with_kernels.py \
            tests/decoding/test_drafting_with_kernels.py tests/decoding/test_compiled_with_kernels.py
    fi
}

bench() {  # a part's name says how
    local arguments=()
    [[ $1 == 32768* ]] && arguments+=(--draft-vocab-size 32768)
    [[ $1 == *int8 ]] && arguments+=(--draft-head-dtype int8)
    TRANSFORMERS_GRIFFIN_KERNELS=$([[ $1 == *kernels* ]] && echo 1 || echo 0) \
        "$PYTHON" -m transformers_griffin.cli bench --synthetic "$SHAPE" --output "$OUTPUT/$1" \
        --prompt-lengths ${PROMPT_LENGTHS:-512 16384} --time-budget "${TIME_BUDGET:-300}" "${arguments[@]}"
}

compare_kernels() {
    local cycle=()  # for the compaction's share
    if [[ -f $OUTPUT/32768/synthetic.json ]]; then
        cycle=(--cycle_ms "$("$PYTHON" -c 'import json, sys
print(1000 * min(row["cycle_seconds"] for row in json.load(open(sys.argv[1]))["rows"]))' "$OUTPUT/32768/synthetic.json")")
    fi
    "$PYTHON" trainers/benchmark_kernels.py "${cycle[@]}"
}

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "no GPU here"; print(torch.cuda.get_device_name())'
for part in "${PARTS[@]}"; do
    if [[ $part == *kernels* && $HAS_TRITON == 0 ]]; then
        echo "$part: not measured, Triton is not installed"
        continue
    fi
    case $part in
        tests) run_tests ;;
        all | 32768 | 32768-kernels | 32768-kernels-int8 | all-kernels-int8) bench "$part" ;;
        kernels) compare_kernels ;;
        *) echo "Unknown part '$part'; the parts are listed at the top of $0." >&2 && exit 2 ;;
    esac
done
