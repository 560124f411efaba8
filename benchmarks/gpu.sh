#!/usr/bin/env bash
# The training step on one GPU, in one call of at most 9 minutes.
#
#   OUT=results benchmarks/gpu.sh
#
# OUT     folder for gpu.json and the log of each measurement (default: gpu-results)
# STORE   a token store of 30,522 tokens, for real rows and the comparison with
#         transformers; without it rows are full, their tokens random
# WHEELS  folder of wheels (ml-collections, jaxtyping, ...) that are missing here
# SECONDS_LEFT  after which nothing new begins (default: 510)
# GPU_SMOKE=1   tiny sizes on any device, to see that it works
#
# The most important comes first, and each failure is a line of the result. Needs no
# installation, network or TensorFlow.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-gpu-results}"
deadline=$((SECONDS + ${SECONDS_LEFT:-510}))
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
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
  if ((left < 20)); then
    echo "$name: no time left" >&2
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

if [[ -n "${GPU_SMOKE:-}" ]]; then
  pause=0.2 pairs=1
  step tiny-64 configs/bert_tiny.py:smoke 64 8
  step tiny-64-wrong configs/bert_tiny.py:smoke 64 8 --config.model.heads=3
  torch tiny-64-full configs/bert_tiny.py:smoke 64 8 --rows=full --settings=eager:float32
else
  pause=5 pairs=3
  step large-512 configs/bert_large.py 512 32
  step large-128 configs/bert_large.py 128 128
  step base-512 configs/bert_base.py 512 64
  step base-128 configs/bert_base.py 128 256
  step large-512-xla configs/bert_large.py 512 32 --config.model.attention=xla
  step large-512-unrolled configs/bert_large.py 512 32 --config.model.scan=False
  torch base-512-full configs/bert_base.py 512 32 --rows=full --settings=eager:bfloat16,compile:bfloat16
  torch base-512-real configs/bert_base.py 512 32 --rows=real --settings=eager:bfloat16,compile:bfloat16
fi

python3 - "$lines" "$out/gpu.json" <<'PYTHON'
import datetime
import importlib.metadata
import json
import platform
import sys

import jax

with open(sys.argv[1]) as file:
    results = [json.loads(line) for line in file]
names = "jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers"
versions = {"Python": platform.python_version()}
for name in names:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        continue
told = {
    "date": datetime.date.today().isoformat(),
    "device": jax.devices()[0].device_kind,
    "versions": versions,
    "results": results,
}
with open(sys.argv[2], "w") as file:
    json.dump(told, file, indent=1)
print(f"{told['device']}, {told['date']}, jax {versions['jax']}")
print(f"{'':20} {'step (ms)':>10} {'useful/s':>12} {'MFU':>7}  beside PyTorch")
for each in results:
    if "error" in each:
        print(f"{each['name']:20} {each['error']}")
    elif "useful_ratio" in each:
        rate = each["bert_jax"]["useful_tokens_per_second"]
        print(f"{each['name']:20} {'':10} {rate:12,.0f} {'':7}  {each['useful_ratio']:.2f}")
    else:
        mfu = f"{each['mfu']:.1%}" if each["mfu"] is not None else "-"
        milliseconds = each["seconds_median"] * 1e3
        rate = each["useful_tokens_per_second"]
        print(f"{each['name']:20} {milliseconds:10.1f} {rate:12,.0f} {mfu:>7}")
PYTHON
