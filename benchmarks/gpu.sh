#!/usr/bin/env bash
# Training and attention on one GPU, in one call of at most 9 minutes.
#
#   OUT=results benchmarks/gpu.sh
#
# OUT     folder for gpu.json and the log of each measurement (default: gpu-results)
# STORE   a token store of 30,522 tokens, for real rows, the comparison with
#         transformers and the losses; without it rows are full, their tokens random
# ONLY    a regex on the names of what to measure, for what a first call had no time for
# WHEELS  folder of wheels that are missing here: ml-collections, jaxtyping and
#         wadler-lindig; for the losses also xxhash, zstandard, sentencex, tensorboardX
# SECONDS_LEFT  after which nothing new begins (default: 510)
# GPU_SMOKE=1   tiny sizes on any device, to see that it works
#
# The most important comes first, and each failure is a line of the result. Needs no
# installation, network or TensorFlow. Rows of a step are what `bert-jax plan` says to
# fit an H100.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-gpu-results}"
deadline=$((SECONDS + ${SECONDS_LEFT:-510}))
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# What one process has compiled, the next one with the same step need not.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$(realpath "$out")/compiled}"
if [[ -n "${WHEELS:-}" ]]; then
  python3 -m pip install --quiet --no-index --no-deps --target "$out/packages" "$WHEELS"/*.whl
  export PYTHONPATH="$out/packages:$PYTHONPATH"
fi
# Names and JSON of what was measured, a line each.
lines="$out/lines.jsonl"
: >"$lines"

measure() { # NAME SECONDS COMMAND...: its last line on stdout is JSON
  local name="$1" limit="$2" status=0 left=$((deadline - SECONDS))
  shift 2
  [[ "$name" =~ ${ONLY:-} ]] || return 0
  if ((left < 20)); then
    echo "$name: no time left" >&2
    echo "{\"name\": \"$name\", \"error\": \"no time left\"}" >>"$lines"
    return
  fi
  timeout "$((limit < left ? limit : left))" "$@" >"$out/$name.out" 2>"$out/$name.log" || status=$?
  python3 - "$name" "$status" "$out/$name" >>"$lines" <<'PYTHON'
import json
import sys

name, status, path = sys.argv[1:]
with open(f"{path}.out") as file:
    told = file.read().splitlines()
try:
    print(json.dumps({"name": name, **json.loads(told[-1])}))
except (IndexError, ValueError):
    with open(f"{path}.log") as file:
        last = (file.read().strip().splitlines() or [""])[-1]
    print(json.dumps({"name": name, "error": f"status {status}: {last}"}))
PYTHON
  tail -n 1 "$lines" | cut -c 1-200 >&2
}

step() { # NAME CONFIG LENGTH BATCH FLAGS...
  local name="$1" config="$2" length="$3" batch="$4"
  shift 4
  measure "$name" 120 python3 -m bert_jax bench step --json --seconds="$pause" \
    --config="$config" "--config.phases[0].length=$length" \
    "--config.phases[0].batch=$batch" --config.model.attention_dropout=0.0 \
    ${STORE:+"--config.data.store=$STORE"} "$@"
}

torch() { # NAME CONFIG LENGTH BATCH FLAGS...
  local name="$1" config="$2" length="$3" batch="$4"
  shift 4
  [[ -n "${STORE:-}" ]] || return 0
  measure "$name" 240 python3 benchmarks/step_vs_torch.py --seconds="$pause" --pairs="$pairs" \
    --config="$config" --config.data.store="$STORE" \
    "--config.phases[0].length=$length" "--config.phases[0].batch=$batch" \
    --config.model.attention_dropout=0.0 "$@"
}

attention() { # NAME FLAGS...
  local name="$1"
  shift
  measure "$name" 120 python3 benchmarks/attention.py --json --seconds=0.3 "$@"
}

losses() { # NAME CONFIG LENGTH STEPS FLAGS...: three runs at a time, which need little
  local name="$1" config="$2" length="$3" steps="$4"
  shift 4
  [[ -n "${STORE:-}" ]] || return 0
  XLA_PYTHON_CLIENT_MEM_FRACTION=0.2 measure "$name" 200 python3 -m bert_jax sweep --json \
    --grid=benchmarks/fast_path.toml --config="$config" --workdir="$out/$name" --jobs=3 \
    --config.data.store="$STORE" "--config.phases[0].length=$length" \
    --config.steps="$steps" --config.eval_every="$steps" --config.save_every="$steps" \
    --config.keep_last=1 --config.keep_best=0 --config.model.attention_dropout=0.0 "$@"
}

if [[ -n "${GPU_SMOKE:-}" ]]; then
  pause=0.2 pairs=1
  step tiny-64 configs/bert_tiny.py:smoke 64 8
  step tiny-64-wrong configs/bert_tiny.py:smoke 64 8 --config.model.heads=3
  torch tiny-64-full configs/bert_tiny.py:smoke 64 8 --rows=full --settings=eager:float32
  attention attention --lengths=128 --tokens=256 --features=16 --examples=2 --interpreted
  step tiny-64-pallas configs/bert_tiny.py:smoke 64 8 --config.model.attention=pallas
  losses losses configs/bert_tiny.py:smoke 64 2 --seeds=2
else
  pause=4 pairs=2
  both=eager:bfloat16,compile:bfloat16
  step large-512 configs/bert_large.py 512 64
  step large-128 configs/bert_large.py 128 256
  step base-512 configs/bert_base.py 512 128
  step base-128 configs/bert_base.py 128 512
  torch base-512-real configs/bert_base.py 512 64 --rows=real --settings=$both
  torch base-512-full configs/bert_base.py 512 64 --rows=full --settings=$both
  attention attention
  step large-512-pallas configs/bert_large.py 512 64 --config.model.attention=pallas
  step large-512-xla configs/bert_large.py 512 64 --config.model.attention=xla
  losses losses configs/bert_tiny.py:cpu 64 300 --config.model.vocab_size=30522
  # BERT's own recipe drops probabilities, packed rows hold several examples.
  attention attention-dropped --kinds=xla,pallas --rate=0.1 --examples=4
  step large-512-recipe-pallas configs/bert_large.py 512 64 --config.model.attention=pallas \
    --config.model.attention_dropout=0.1
  step large-512-recipe-xla configs/bert_large.py 512 64 --config.model.attention=xla \
    --config.model.attention_dropout=0.1
  step large-512-unrolled configs/bert_large.py 512 64 --config.model.scan=False
fi

python3 benchmarks/gpu_table.py "$lines" "$out/gpu.json"
