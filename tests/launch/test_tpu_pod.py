"""launch/tpu_pod.sh against gclouds that only pretend."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "tpu_pod.sh"
FLAGS = ("--name=pod", "--zone=us-east5-b", "--topology=v6e:4x4")
WORDS = ("train", "--config=configs/bert_base.py", "--workdir=gs://bucket/base")


@pytest.fixture
def script(tmp_path):
    """Starts the script with a program in place of gcloud, no waiting between."""
    started = []

    def start(gcloud, *arguments, program=SCRIPT, **environment):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin/gcloud").write_text(gcloud)
        (tmp_path / "bin/gcloud").chmod(0o755)
        found = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "GLOG": str(tmp_path / "calls"),
            "POLL_SECONDS": "0",
        }
        process = subprocess.Popen(
            ["bash", program, *arguments],
            env=os.environ | found | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


# Lists its calls. `describe` prints the next state, ssh ends with the next status: the
# first lines of two files; ACTIVE and 0 when they are used up.
PLAYED = """#!/bin/sh
next() {
  head -n 1 "$GLOG.$1"
  sed -i 1d "$GLOG.$1"
}
echo gcloud "$@" | tr '\\n' ' ' >>"$GLOG"
echo >>"$GLOG"
case $4 in
  describe) state=$(next states) && echo "${state:-ACTIVE}" ;;
  ssh) status=$(next statuses) && exit "${status:-0}" ;;
esac
"""


@pytest.fixture
def play(script, tmp_path):
    """Babysits through states and statuses of ssh; returns status, calls and output."""

    def run(states, statuses, *flags):
        for name, lines in (("states", states), ("statuses", statuses)):
            (tmp_path / f"calls.{name}").write_text("".join(f"{x}\n" for x in lines))
        process = script(PLAYED, "babysit", *FLAGS, *flags, "--", *WORDS)
        out, _ = process.communicate(timeout=30)
        lines = (tmp_path / "calls").read_text().splitlines()
        # gcloud compute tpus queued-resources|tpu-vm VERB ...
        verbs = " ".join(line.split()[4] for line in lines)
        return process.returncode, verbs.replace("describe", "?"), out

    return run


def test_the_states_of_a_spot_pod(play):
    states = ["ABSENT", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE"]
    states += ["SUSPENDING", "SUSPENDED", "DELETING", "ABSENT", "ACTIVE", "ACTIVE"]
    # Each ACTIVE pod gets the code (scp, ssh) before its first run (ssh).
    status, verbs, out = play(states, [0, 75, 255, 0, 137, 0], "--spot")
    assert status == 0, out
    lives = "? create ? ? ? scp ssh ssh ? ssh ? ? delete ? ? create ? scp ssh ssh ? ssh"
    assert verbs == lives, out
    for number, why in enumerate(("with 75", "with 255", "SUSPENDED", "with 137"), 1):
        assert re.search(f"{why}.*; restart {number} of 20", out)


@pytest.mark.parametrize("code", [1, 2, 139])
def test_a_bug_ends_it_and_keeps_the_pod(play, code):
    status, verbs, out = play(["ACTIVE", "ACTIVE"], [0, code])
    assert (status, verbs) == (code, "? scp ssh ssh ?"), out


@pytest.mark.parametrize("code", [42, 75, 134, 137, 143, 255])
def test_restarts_are_counted(play, code):
    status, verbs, out = play([], [0, code, code, code, 0], "--restarts=2")
    assert (status, verbs) == (code, "? scp ssh ssh ? ssh ? ssh"), out
    assert "no restart of 2 left" in out


def test_a_failed_request_is_made_again_and_counted(play):
    status, verbs, out = play(["FAILED", "ABSENT"] * 3, [], "--restarts=2")
    assert (status, verbs) == (1, "? delete ? create ? delete ? create ?"), out


def test_code_that_does_not_install_is_tried_again(play):
    status, verbs, out = play([], [1, 0, 0])
    assert (status, verbs) == (0, "? scp ssh ? scp ssh ssh"), out


def test_gclouds_own_failure_is_no_bug_of_a_lost_pod(play):
    states = ["ACTIVE", "SUSPENDING", "SUSPENDED", "ABSENT", "ACTIVE"]
    status, verbs, out = play(states, [0, 1, 0, 0])
    assert status == 0 and "the pod was lost" in out
    assert verbs == "? scp ssh ssh ? ? delete ? create ? scp ssh ssh", out


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("NOT_FOUND: Resource was not found.", "ABSENT"),
        ("PERMISSION_DENIED", "UNKNOWN"),
    ],
)
def test_what_cannot_be_described(script, error, says):
    gcloud = f"#!/bin/sh\necho 'ERROR: (gcloud) {error}' >&2\nexit 1\n"
    out, _ = script(gcloud, "status", *FLAGS).communicate(timeout=30)
    assert out.splitlines()[-1] == says


def test_an_unknown_state_ends_in_time(script):
    gcloud = "#!/bin/sh\necho 'ERROR: PERMISSION_DENIED' >&2\nexit 1\n"
    process = script(gcloud, "babysit", *FLAGS, "--restarts=1", "--", *WORDS)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 1 and "the state is UNKNOWN; no restart" in out


# Runs what is meant for a host here, in a home folder of its own.
HOST = f"""#!/bin/bash
for word; do
  case $word in --command=*)
    cd "$HOME" && PYTHON={shlex.quote(sys.executable)} exec bash -c "${{word#*=}}" ;;
  esac
done
"""


@pytest.fixture
def home(tmp_path):
    """A host's home folder; `bert_jax` in it is the given program."""

    def write(program):
        package = tmp_path / "home/bert_jax/bert_jax"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        text = f"import json, os, signal, sys, time\n{program}"
        (package / "__main__.py").write_text(text)
        python = tmp_path / "home/bert_jax/.venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text('#!/bin/sh\nexec "$PYTHON" "$@"\n')
        python.chmod(0o755)
        return package.parent.parent

    return write


def test_words_arrive_as_they_were_given(script, home):
    folder = home('json.dump(sys.argv[1:], open("words", "w"))')
    words = ["train", "--a=b c", "--d='e\"", "$HOME", "*", "", "x;y&&z|q", "two\nlines"]
    process = script(HOST, "run", *FLAGS, "--", *words, HOME=str(folder))
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    assert json.loads((folder / "bert_jax/words").read_text()) == words


SAVES = """
if os.path.exists("saved"):
    sys.exit(0)
def save(*_):
    open("saved", "w").close()
    os._exit(75)
signal.signal(signal.SIGTERM, save)
open("ready", "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize("second", ["run", "stop"])
def test_a_run_left_behind_saves_before_the_next(script, home, second):
    folder = home(SAVES)
    first = script(HOST, "run", *FLAGS, "--", "train", HOME=str(folder))
    limit = time.monotonic() + 30
    while not (folder / "bert_jax/ready").exists():
        assert time.monotonic() < limit and first.poll() is None
        time.sleep(0.005)
    words = ["--", "train"] if second == "run" else []
    process = script(HOST, second, *FLAGS, *words, HOME=str(folder))
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    out, _ = first.communicate(timeout=30)
    assert first.returncode == 75, out


@pytest.mark.parametrize("code", [1, 2])
def test_the_bug_of_a_later_host_decides(script, code):
    gcloud = f"""#!/bin/sh
echo 'tpu_pod: t1v-n-0 ended with 134'
echo 'tpu_pod: t1v-n-1 ended with {code}'
exit 134
"""
    process = script(gcloud, "run", *FLAGS, "--", *WORDS)
    process.communicate(timeout=30)
    assert process.returncode == code


def test_the_code_is_pushed(script, tmp_path):
    gcloud = """#!/bin/sh
for word; do case $word in *code.tgz) [ -f "$word" ] && cp "$word" "$GLOG" ;; esac; done
exit 0
"""
    process = script(gcloud, "push", *FLAGS)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    with tarfile.open(tmp_path / "calls") as code:
        names = set(code.getnames())
    assert {"setup.py", "bert_jax/__main__.py", "configs/bert_base.py"} <= names
    assert "launch/local.py" in names  # setup.py packs it
    assert not any("__pycache__" in name for name in names)


# Copies to and runs on one host, this one; its python3 lists what it is asked for.
PUSHED = """#!/bin/bash
for word; do
  case $word in
    *code.tgz) cp "$word" "$HOME/code.tgz" ;;
    --command=*) cd "$HOME" && PATH=$HOME:$PATH exec bash -c "${word#*=}" ;;
  esac
done
"""
METADATA = """Name: bert-jax
Requires-Dist: numpy<3,>=2.4
Requires-Dist: tensorflow-cpu<3; platform_machine == "x86_64"
Requires-Dist: jax[tpu]<0.12; extra == "tpu"
Requires-Dist: torch==2.13.0; extra == "parity"
Requires-Dist: x; extra == "aot-tpu"

Requires-Dist: begins this line of the description.
"""


def test_an_installed_package_is_pushed_with_what_it_needs(script, tmp_path):
    site, folder = tmp_path / "site-packages", tmp_path / "home"
    folder.mkdir()
    (site / "bert_jax/launch").mkdir(parents=True)
    (site / "bert_jax/__init__.py").touch()
    (site / "other").mkdir()
    installed = shutil.copy(SCRIPT, site / "bert_jax/launch")
    (site / "bert_jax-1.0.dist-info").mkdir()
    (site / "bert_jax-1.0.dist-info/METADATA").write_text(METADATA)
    (folder / "python3").write_text('#!/bin/sh\necho "$@" >>"$HOME/asked"\n')
    (folder / "python3").chmod(0o755)
    (folder / "bert_jax").mkdir()
    (folder / "bert_jax/setup.py").touch()  # of a repository that was pushed before
    process = script(PUSHED, "push", *FLAGS, program=installed, HOME=str(folder))
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    assert "--requirement=requirements.txt" in (folder / "asked").read_text()
    assert (folder / "bert_jax/bert_jax/__init__.py").exists()
    assert not (folder / "bert_jax/other").exists()
    needs = (folder / "bert_jax/requirements.txt").read_text().splitlines()
    other = 'tensorflow-cpu<3; platform_machine == "x86_64"'
    assert needs == ["numpy<3,>=2.4", other, "jax[tpu]<0.12"]


@pytest.mark.parametrize(
    ("topology", "type_", "runtime"),
    [
        ("v5e:16x16", "v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p:4x4x4", "v5p-128", "v2-alpha-tpuv5"),
        ("v6e:2x4", "v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_topologies_become_types(script, topology, type_, runtime):
    gcloud = '#!/bin/sh\necho "$@"\n'
    flags = "--name=pod", "--zone=us-east5-b", f"--topology={topology}"
    out, _ = script(gcloud, "create", *flags).communicate(timeout=30)
    assert f"--accelerator-type={type_} --runtime-version={runtime} --quiet" in out
    out, _ = script(gcloud, "create", *flags, "--spot").communicate(timeout=30)
    assert "--spot" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--name="),
        (["start", *FLAGS], "no command 'start'"),
        (["create", *FLAGS, "--name=Pod"], "lower-case"),
        (["create", *FLAGS, "--zone="], "--zone="),
        (["create", *FLAGS[:2]], "--topology is missing"),
        (["create", *FLAGS, "--topology=v4:2x2"], "v5e:4x4"),
        (["create", *FLAGS, "--sport"], "unknown flag --sport"),
        (["babysit", *FLAGS], "the command is missing"),
        (["babysit", *FLAGS, "--restarts=x", "--", "train"], "--restarts=x"),
    ],
)
def test_mistakes_are_said(script, arguments, says):
    process = script("#!/bin/sh\nexit 99\n", *arguments)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 2 and says in out


if shutil.which("gcloud"):  # it reads its flags before it asks for an account

    @pytest.mark.slow
    @pytest.mark.parametrize("command", ["status", "create", "push", "stop", "delete"])
    def test_the_real_gcloud_knows_every_flag(script, tmp_path, command):
        record = '#!/bin/sh\nprintf "%s\\0" "$@" end >>"$GLOG"\n'
        process = script(record, command, *FLAGS, "--spot")
        process.communicate(timeout=30)
        calls = (tmp_path / "calls").read_text().split("\0end\0")[:-1]
        nowhere = {
            "CLOUDSDK_CONFIG": str(tmp_path / "none"),
            "CLOUDSDK_CORE_PROJECT": "none",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": "http://127.0.0.1:9/",
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        }
        assert calls
        for call in calls:
            result = subprocess.run(
                ["gcloud", *call.split("\0")],
                env=os.environ | nowhere,
                capture_output=True,
                text=True,
            )
            assert result.returncode == 1, result.stderr
            assert "unrecognized arguments" not in result.stderr
            assert "active account" in result.stderr, result.stderr
