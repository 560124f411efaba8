#!/usr/bin/env python3
"""Prints a JobSet that runs one command on TPUs or GPUs of a GKE cluster.

python launch/gke.py --name=base --topology=v6e:16x16 --image=IMAGE -- \
    train --config=configs/bert_base.py --workdir=gs://bucket/base | kubectl apply -f -

One pod a host. The cluster needs the JobSet controller and a node pool of the topology.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml

RESTARTABLE = (42, 75, 134, 137, 143)  # hang, preempted, SIGABRT, SIGKILL, SIGTERM
PORT = 8476  # of process 0, on the node's own network
WORKER = "worker"  # the replicated job and its container
GRACE = 120  # [seconds] from SIGTERM to SIGKILL; a spot node itself may have less


class Host(NamedTuple):
    """What one pod asks of its node."""

    count: int  # pods
    chips: int  # of each
    resource: str
    selector: dict[str, str]


# cloud.google.com/tpu/docs: hosts hold 4 chips, small v5e and v6e slices one host.
TPUS = {
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16".split()
SMALL_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4".split()
GPUS = {  # machines: a3-highgpu, a3-megagpu, a3-ultragpu, a2-ultragpu
    "h100": "nvidia-h100-80gb",
    "h100-mega": "nvidia-h100-mega-80gb",
    "h200": "nvidia-h200-141gb",
    "a100": "nvidia-a100-80gb",
}


def host(topology: str) -> Host:
    """Divides a topology among hosts.

    Args:
      topology: `v5e:4x4`, `v5p:4x4x4`, `v6e:16x16`, or a number of GPUs: `h100:16`.

    Returns:
      How many hosts, and what each needs.

    Raises:
      ValueError: GKE has no such topology; the message says what there is.
    """
    kind, _, size = topology.partition(":")
    if kind in TPUS:
        if kind == "v5p" and not (size in SMALL_CUBES or _large_cube(size)):
            raise ValueError(
                f"{topology}: v5p has {', '.join(SMALL_CUBES)}, or three multiples of "
                "4 that rise up to 24: 4x4x8"
            )
        if kind != "v5p" and size not in FLAT:
            raise ValueError(f"{topology}: {kind} has {', '.join(FLAT)}")
        sides = map(int, size.split("x"))
        chips = math.prod(sides)
        each = chips if size in FLAT and chips <= 8 else 4
        selector = {
            "cloud.google.com/gke-tpu-accelerator": TPUS[kind],
            "cloud.google.com/gke-tpu-topology": size,
        }
        return Host(chips // each, each, "google.com/tpu", selector)
    if kind in GPUS:
        if not re.fullmatch("[1-9][0-9]{0,4}", size) or (
            int(size) % 8 and size not in ("1", "2", "4")
        ):
            raise ValueError(f"{topology}: needs 1, 2, 4 or a multiple of 8 GPUs")
        chips = int(size)
        selector = {"cloud.google.com/gke-accelerator": GPUS[kind]}
        return Host(max(1, chips // 8), min(chips, 8), "nvidia.com/gpu", selector)
    raise ValueError(
        f"{topology}: needs {', '.join([*TPUS, *GPUS])} and a size: v5e:4x4, h100:8"
    )


def _large_cube(size: str) -> bool:
    if not re.fullmatch("[1-9][0-9]?(x[1-9][0-9]?){2}", size):
        return False
    sides = [int(side) for side in size.split("x")]
    return sides == sorted(sides) and sides[-1] <= 24 and not any(n % 4 for n in sides)


def jobset(args: argparse.Namespace) -> dict[str, Any]:
    """Makes the manifest, as its fields are in jobset.x-k8s.io/v1alpha2."""
    need = args.host
    first = f"{args.name}-{WORKER}-0-0.{args.name}"
    environment = {
        "JAX_COORDINATOR_ADDRESS": f"{first}:{PORT}",
        "JAX_PROCESS_COUNT": str(need.count),
        # The index is in JOB_COMPLETION_INDEX, which Kubernetes sets.
    }
    # Kubernetes replaces $(NAME) in a command, and $$ by $.
    words = [word.replace("$", "$$") for word in args.command]
    container = {
        "name": WORKER,
        "image": args.image,
        "command": ["python", "-m", "bert_jax", *words],
        "env": [{"name": k, "value": v} for k, v in environment.items()],
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": {need.resource: need.chips}},
        # NCCL and the loaders' processes share memory; the default is 64 MiB.
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": dict(need.selector),
        "tolerations": [{"key": need.resource, "operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    if args.spot:
        pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"].append(
            {"key": "cloud.google.com/gke-spot", "operator": "Exists"}
        )
    if args.claim:
        claim, _, path = args.claim.partition(":")
        container["volumeMounts"].append({"name": "claim", "mountPath": path})
        volume = {"name": "claim", "persistentVolumeClaim": {"claimName": claim}}
        pod["volumes"].append(volume)
    if args.service_account:
        pod["serviceAccountName"] = args.service_account
    no_restart = {
        "action": "FailJob",
        "onExitCodes": {
            "containerName": WORKER,
            "operator": "NotIn",
            "values": list(RESTARTABLE),
        },
    }
    job = {
        "parallelism": need.count,
        "completions": need.count,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod alone cannot go on: the JobSet restarts all
        "podFailurePolicy": {"rules": [no_restart]},
        "template": {"spec": pod},
    }
    stop = {
        "name": "noRestartHelps",  # JobSet takes no - here
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    metadata: dict[str, Any] = {"name": args.name}
    if need.count > 1 and need.resource == "google.com/tpu":
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {key: "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": args.name},
            "failurePolicy": {
                "maxRestarts": args.restarts,
                # The new pods get the same nodes and port: the old ones go first.
                "restartStrategy": "BlockingRecreate",
                "rules": [stop],
            },
            "replicatedJobs": [
                {"name": WORKER, "replicas": 1, "template": {"spec": job}}
            ],
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the manifest as YAML; mistakes end with status 2."""
    args = _arguments(argv)
    yaml.safe_dump(jobset(args), sys.stdout, sort_keys=False)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Print a JobSet that runs `python -m bert_jax COMMAND` on GKE.",
        epilog="example:\n  python launch/gke.py --name=base --topology=h100:16 \\\n"
        "    --image=IMAGE -- train --config=configs/bert_base.py \\\n"
        "    --workdir=gs://bucket/base | kubectl apply -f -",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--name", required=True, help="of the JobSet")
    add(
        "--topology",
        metavar="KIND:SIZE",
        required=True,
        help="v5e:16x16, v5p:4x4x4, v6e:16x16; GPUs in all: h100:16, h200:8, a100:8",
    )
    add("--image", required=True, help="a container image that holds bert_jax")
    add(
        "--restarts",
        metavar="N",
        type=int,
        default=10,
        help="at most, after a hang, a preemption or a kill (default: 10)",
    )
    add("--spot", action="store_true", help="on spot nodes")
    add("--service-account", metavar="NAME", help="that may read and write --workdir")
    add(
        "--claim",
        metavar="NAME:PATH",
        help="a PersistentVolumeClaim that every pod mounts there: a disk for runs",
    )
    add("command", nargs=argparse.REMAINDER, help="train --config=... --workdir=...")
    args = parser.parse_args(argv)
    if args.command[:1] == ["--"]:
        del args.command[0]
    if not args.command:
        parser.error("the command is missing: ... -- train --config=...")
    if args.restarts < 0:
        parser.error(f"--restarts={args.restarts}: must not be negative")
    if not re.fullmatch(r"\S+", args.image):
        parser.error(
            f"--image={args.image}: needs an image, such as gcr.io/me/bert_jax"
        )
    if args.claim and not re.fullmatch("[a-z0-9][-.a-z0-9]*:/.*", args.claim):
        parser.error(f"--claim={args.claim}: needs a claim and a path: runs:/runs")
    try:
        args.host = host(args.topology)
    except ValueError as error:
        parser.error(f"--topology={error}")
    _check_name(parser, "--name", args.name, 63 - len(_pod_suffix(args.host.count)))
    if args.service_account is not None:
        _check_name(parser, "--service-account", args.service_account, 63)
    return args


def _pod_suffix(count: int) -> str:
    """What JobSet and Job append for a pod's name, the last part at random."""
    return f"-{WORKER}-0-{count - 1}-abcde"


def _check_name(
    parser: argparse.ArgumentParser, flag: str, name: str, limit: int
) -> None:
    # RFC 1123 labels, and a letter first: the JobSet's name becomes a Service's.
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
        parser.error(
            f"{flag}={name}: needs lower-case letters, digits and '-', with a letter "
            "first and a letter or digit last (RFC 1123)"
        )
    if len(name) > limit:
        parser.error(f"{flag}={name}: has {len(name)} characters, at most {limit} fit")


if __name__ == "__main__":
    sys.exit(main())
