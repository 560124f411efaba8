"""The manifests of launch/gke.py against JobSet's own schema."""

import copy
import lzma
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCHER = Path(__file__).parents[2] / "launch" / "gke.py"
WORDS = ("train", "--config=configs/bert_base.py", "--workdir=gs://bucket/base")
# Hosts and chips of each, from Google's tables of machine types.
SIZES = {
    "v5e:1x1": (1, 1),
    "v5e:2x2": (1, 4),
    "v5e:2x4": (1, 8),
    "v5e:4x4": (4, 4),
    "v5e:16x16": (64, 4),
    "v5p:2x2x1": (1, 4),
    "v5p:4x4x4": (16, 4),
    "v6e:2x4": (1, 8),
    "v6e:16x16": (64, 4),
    "h100:1": (1, 1),
    "h100:8": (1, 8),
    "h200:16": (2, 8),
    "a100:32": (4, 8),
}


def emit(*flags, words=WORDS, name="base", topology="v6e:4x4", image="gcr.io/me/bert"):
    own = f"--name={name}", f"--topology={topology}", f"--image={image}"
    command = [sys.executable, str(LAUNCHER), *own, *flags, "--", *words]
    return subprocess.run(command, capture_output=True, text=True)


def manifest(*flags, **changes):
    result = emit(*flags, **changes)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


def job_of(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def close(schema):
    """Lets no unknown field pass, and numbers or names where Kubernetes does."""
    if isinstance(schema, list):
        return [close(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: close(part) for name, part in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        closed.pop("type", None)
        closed["type"] = ["integer", "string"]
    keeps = schema.get("x-kubernetes-preserve-unknown-fields") is True
    if schema.get("type") == "object" and "properties" in schema and not keeps:
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.fixture(scope="module")
def errors(shared):
    """A function: the paths at which a manifest breaks the schema."""
    import jsonschema

    path = shared.parent / "reference/k8s/jobset_crd.yaml.xz"
    crd = yaml.load(lzma.open(path).read(), getattr(yaml, "CSafeLoader", yaml.Loader))
    (version,) = [v for v in crd["spec"]["versions"] if v["storage"]]
    schema = close(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    validator = jsonschema.Draft202012Validator(schema)

    def find(document):
        assert document["apiVersion"] == f"jobset.x-k8s.io/{version['name']}"
        return [
            "/".join(map(str, error.absolute_path))
            for error in validator.iter_errors(document)
        ]

    return find


@pytest.mark.shared
@pytest.mark.parametrize("topology", ["v5e:1x1", "v5p:4x4x4", "v6e:16x16", "h100:16"])
def test_the_schema_has_no_complaint(errors, topology):
    flags = "--spot", "--service-account=trainer", "--claim=runs:/runs"
    assert errors(manifest(*flags, topology=topology)) == []
    assert errors(manifest(topology=topology)) == []


@pytest.mark.shared
def test_planted_errors_are_found(errors):
    def plant(change):
        planted = copy.deepcopy(good)
        change(planted)
        return errors(planted)

    def pod(jobset):
        return job_of(jobset)["template"]["spec"]

    good = manifest()
    at_job = "spec/replicatedJobs/0/template/spec"
    found = plant(lambda d: job_of(d).update(backofLimit=0))
    assert found == [at_job]
    found = plant(lambda d: job_of(d).update(parallelism="4"))
    assert found == [f"{at_job}/parallelism"]
    found = plant(lambda d: pod(d)["containers"][0].pop("name"))
    assert found == [f"{at_job}/template/spec/containers/0"]
    found = plant(lambda d: d["spec"]["failurePolicy"]["rules"][0].update(action="x"))
    assert found == ["spec/failurePolicy/rules/0/action"]
    found = plant(lambda d: d["spec"]["replicatedJobs"][0].pop("template"))
    assert found == ["spec/replicatedJobs/0"]
    found = plant(lambda d: pod(d)["containers"][0]["env"][0].update(value=4))
    assert found == [f"{at_job}/template/spec/containers/0/env/0/value"]


@pytest.mark.parametrize("topology", SIZES)
def test_a_pod_a_host(topology):
    hosts, chips = SIZES[topology]
    document = manifest(topology=topology)
    job = job_of(document)
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    (limit,) = pod["containers"][0]["resources"]["limits"].values()
    assert limit == chips
    variables = {v["name"]: v["value"] for v in pod["containers"][0]["env"]}
    assert variables["JAX_PROCESS_COUNT"] == str(hosts)
    assert variables["JAX_COORDINATOR_ADDRESS"] == "base-worker-0-0.base:8476"
    assert document["spec"]["network"]["subdomain"] == "base"
    selector = " ".join(pod["nodeSelector"].values())
    if topology[0] == "v":
        kind, size = topology.split(":")
        family = {"v5e": "v5-lite-podslice", "v5p": "v5p-slice", "v6e": "v6e-slice"}
        assert selector == f"tpu-{family[kind]} {size}"
    else:
        assert selector.startswith(f"nvidia-{topology.split(':')[0]}")


def test_only_the_listed_statuses_restart():
    document = manifest("--restarts=7")
    policy = document["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    # The schema states this rule in words only.
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    job = job_of(document)
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    codes = rule["onExitCodes"]
    assert codes["containerName"] == pod["containers"][0]["name"]
    assert codes["operator"] == "NotIn" and codes["values"] == [42, 75, 134, 137, 143]


def test_flags_reach_the_pod():
    plain = job_of(manifest())["template"]["spec"]
    pod = job_of(manifest("--spot", "--service-account=me"))["template"]["spec"]
    assert pod["serviceAccountName"] == "me" and "serviceAccountName" not in plain
    claimed = job_of(manifest("--claim=runs:/a/b"))["template"]["spec"]
    volumes = {volume["name"]: volume for volume in claimed["volumes"]}
    assert volumes["claim"]["persistentVolumeClaim"] == {"claimName": "runs"}
    (container,) = claimed["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"shm": "/dev/shm", "claim": "/a/b"}
    spot = "cloud.google.com/gke-spot"
    assert pod["nodeSelector"][spot] == "true" and spot not in plain["nodeSelector"]
    assert spot in [t["key"] for t in pod["tolerations"]]


def test_words_stay_as_they_are():
    words = ["train", "--a=b c", "$(JAX_PROCESS_COUNT)", "$$", "'\"", "no: yes"]
    command = job_of(manifest(words=words))["template"]["spec"]["containers"][0]
    assert command["command"][:3] == ["python", "-m", "bert_jax"]
    # As Kubernetes reads it: $$ is $, and a single $ might be replaced.
    parts = [word.split("$$") for word in command["command"][3:]]
    assert not any("$" in part for word in parts for part in word)
    assert ["$".join(word) for word in parts] == words


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "Base"}, "--name=Base: needs lower-case"),
        ({"name": "base-"}, "RFC 1123"),
        ({"name": "1base"}, "letter"),
        ({"name": "a.b"}, "RFC 1123"),
        ({"name": ""}, "RFC 1123"),
        ({"name": "b" * 50}, "has 50 characters, at most 46 fit"),
        ({"topology": "v4:4x4"}, "v4:4x4: needs v5e"),
        ({"topology": "v5e:3x3"}, "v5e has 1x1, 2x2"),
        ({"topology": "v5p:4x4"}, "v5p has 2x2x1"),
        ({"topology": "v5p:4x8x4"}, "v5p has"),
        ({"topology": "v5p:04x4x4"}, "v5p has"),
        ({"topology": "h100:12"}, "multiple of 8"),
        ({"topology": "h100:0"}, "multiple of 8"),
        ({"topology": "h100"}, "multiple of 8"),
        ({"image": ""}, "--image="),
        ({"words": []}, "the command is missing"),
    ],
    ids=str,
)
def test_mistakes_are_said(changes, says):
    result = emit(**changes)
    assert result.returncode == 2 and not result.stdout
    assert says in " ".join(result.stderr.split()), result.stderr


def test_mistaken_flags_are_said():
    result = emit("--restarts=-1")
    assert result.returncode == 2 and "must not be negative" in result.stderr
    result = emit("--claim=runs")
    assert result.returncode == 2 and "--claim=runs: needs" in result.stderr
    result = emit("--service-account=A")
    assert result.returncode == 2 and "--service-account=A" in result.stderr
