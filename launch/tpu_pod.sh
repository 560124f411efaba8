#!/usr/bin/env bash
# bert_jax on a TPU pod slice: a queued resource whose hosts all run one command.
#   launch/tpu_pod.sh babysit --name=base --zone=us-east5-b --topology=v6e:16x16 \
#       --spot -- train --config=configs/bert_base.py --workdir=gs://bucket/base
# COMMAND is one of
#   create    request the pod         status   print its state
#   push      copy and install code   stop     SIGTERM to the run: it saves and ends
#   run       run once, on all hosts  delete   give the pod back
#   babysit   all of it, until the run is done or has a bug; launch/README.md has the
#             states. --restarts=20 bounds what it tries again.
# The project and the account are those of gcloud (`gcloud init`).
set -uo pipefail

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p;}' "$0" >&2
  [ $# = 0 ] || printf 'tpu_pod: %s\n' "$*" >&2
  exit 2
}

command=${1:-}
[ $# = 0 ] || shift
name='' zone='' topology='' runtime='' spot='' restarts=20
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --spot) spot=--spot ;;
    --)
      shift
      break
      ;;
    *) usage "unknown flag $1; the words of the run follow --" ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
  usage "--name=$name: needs lower-case letters, digits and -, a letter first"
[[ $zone =~ ^[a-z0-9-]+$ ]] || usage "--zone=$zone: needs a zone such as us-east5-b"
[[ $restarts =~ ^[0-9]+$ ]] || usage "--restarts=$restarts: needs a number"

# A topology in chips becomes Google's type, which counts cores for v5p.
type=''
if [ -n "$topology" ]; then
  [[ $topology =~ ^(v5e|v5p|v6e):[0-9]+(x[0-9]+){1,2}$ ]] ||
    usage "--topology=$topology: needs v5e:4x4, v5p:4x4x4, v6e:16x16 or the like"
  sides=${topology#*:}
  chips=$((${sides//x/*}))
  case $topology in
    v5e:*) type=v5litepod-$chips runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
    v5p:*) type=v5p-$((2 * chips)) runtime=${runtime:-v2-alpha-tpuv5} ;;
    v6e:*) type=v6e-$chips runtime=${runtime:-v2-alpha-tpuv6e} ;;
  esac
fi
case $command in
  create | babysit) [ -n "$type" ] || usage '--topology is missing' ;;
esac
case $command in
  run | babysit) [ $# -gt 0 ] || usage 'the command is missing: -- train ...' ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
tpus=(gcloud compute tpus)
say() { printf 'tpu_pod: %s\n' "$*" >&2; }

state() {
  local answer
  if answer=$("${tpus[@]}" queued-resources describe "$name" --zone="$zone" \
    --format='value(state.state)' 2>"$scratch/error"); then
    echo "${answer:-UNKNOWN}"
  elif grep -q NOT_FOUND "$scratch/error"; then
    echo ABSENT
  else
    cat "$scratch/error" >&2
    echo UNKNOWN
  fi
}

create() {
  "${tpus[@]}" queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type="$type" --runtime-version="$runtime" ${spot:+"$spot"} --quiet
}

delete() {
  "${tpus[@]}" queued-resources delete "$name" --zone="$zone" --force --quiet
}

on_all_hosts() {
  "${tpus[@]}" tpu-vm ssh "$name" --zone="$zone" --worker=all --quiet --command="$1"
}

# The runtime images bring an older Python than JAX needs; uv brings its own. From an
# installed wheel the package is pushed with its metadata, which lists what it needs.
push() {
  local from=$root parts=(setup.py pyproject.toml README.md bert_jax configs launch)
  if [ ! -f "$root/setup.py" ]; then
    from=$(dirname "$root")
    parts=(bert_jax "$(cd "$from" && echo bert_jax-*.dist-info)")
  fi
  tar -C "$from" --exclude=__pycache__ -czf "$scratch/code.tgz" "${parts[@]}" || return
  "${tpus[@]}" tpu-vm scp "$scratch/code.tgz" "$name:code.tgz" --zone="$zone" \
    --worker=all --quiet || return
  # shellcheck disable=SC2016  # expanded on the hosts
  on_all_hosts 'set -e; mkdir -p bert_jax; cd bert_jax; rm -f setup.py; tar -xzf ../code.tgz
    python3 -m pip install --quiet --user uv
    [ -d .venv ] || python3 -m uv venv --quiet --python 3.12 .venv
    wanted=--editable=.[tpu]
    if [ ! -f setup.py ]; then
      sed -n "/^\$/q;/^Requires-Dist: /{s///;s/; extra == \"tpu\"\$//;/extra ==/d;p}" \
        bert_jax-*.dist-info/METADATA >requirements.txt
      wanted=--requirement=requirements.txt
    fi
    python3 -m uv pip install --quiet --python .venv/bin/python "$wanted"'
}

# When ssh is lost the run goes on and holds the chips; gcloud too connects again by
# itself and repeats the command. So whoever starts ends what is there.
# shellcheck disable=SC2016
end_run='cd ~/bert_jax || exit 255
if pid=$(cat run.pid 2>/dev/null) && grep -qs bert_jax "/proc/$pid/cmdline"; then
  kill -TERM "$pid"
  timeout 120 tail --pid="$pid" -f /dev/null || kill -KILL "$pid"
fi'

# Returns the status that decides: of a host with a bug (1) or a mistake (2) where one
# said so, for gcloud gives that of the lowest host, which a peer's death may set.
run() {
  local status said words
  printf -v words '%q ' "$@"
  on_all_hosts "$end_run
sh -c 'echo \$\$ >run.pid; exec \"\$@\"' sh .venv/bin/python -m bert_jax $words
status=\$?
echo \"tpu_pod: \$(hostname) ended with \$status\"
exit \$status" 2>&1 | tee "$scratch/log"
  status=${PIPESTATUS[0]}
  said=$(sed -n 's/^tpu_pod: .* ended with \([12]\)$/\1/p' "$scratch/log" | head -1)
  return "${said:-$status}"
}

tried=0
again() { # why; the status to leave with when it was the last time
  tried=$((tried + 1))
  if [ "$tried" -gt "$restarts" ]; then
    say "$1; no restart of $restarts left"
    exit "$2"
  fi
  say "$1; restart $tried of $restarts"
}

babysit() {
  local now last='' status pushed=''
  while :; do
    now=$(state)
    [ "$now" = "$last" ] || say "$name is $now"
    last=$now
    case $now in
      ABSENT)
        pushed=''
        create || again "the request failed" 1
        ;;
      ACTIVE)
        if [ -z "$pushed" ] && ! push; then
          again "the code could not be installed" 1
        else
          pushed=yes
          run "$@"
          status=$?
          case $status in
            0)
              say "done; the pod is still there, \`delete\` gives it back"
              exit 0
              ;;
            42 | 75 | 134 | 137 | 143 | 255)
              again "the run ended with $status" "$status"
              ;;
            *)
              # gcloud's own failures are 1 as well: when a pod is lost, for one.
              if grep -q '^tpu_pod: ' "$scratch/log" || [ "$(state)" = ACTIVE ]; then
                say "the run ended with $status, no restart helps; the pod stays"
                exit "$status"
              fi
              again "the pod was lost" "$status"
              ;;
          esac
        fi
        ;;
      SUSPENDED | FAILED)
        pushed=''
        again "the pod is $now, to be made anew" 1
        delete || say "delete failed"
        ;;
      CREATING | ACCEPTED | PROVISIONING | SUSPENDING | DELETING) ;;
      WAITING_FOR_RESOURCES) ;;
      *) again "the state is $now" 1 ;;
    esac
    sleep "${POLL_SECONDS:-30}"
  done
}

case $command in
  status) state ;;
  create | push | delete) "$command" ;;
  stop) on_all_hosts "$end_run" ;;
  run | babysit) "$command" "$@" ;;
  *) usage "no command '$command'" ;;
esac
