"""Sweeps at work: sharing, failures, locks and kills, with a stand-in for training, and once with it."""

import csv
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from pc2seg_jax import config as config_lib
from pc2seg_jax import sweep_cells, sweep_report, sweeping
from pc2seg_jax.errors import UserError

HERE = pathlib.Path(__file__).parent
WEIGHTS = "config.loss.contrast_weight=0,0.1,0.3"
HEAD = {"configuration": "base.py", "overrides": {}, "steps": 6, "versions": {"jax": "1"}, "hardware": "none"}

# Imitates `train`: its options, its folder, continuing after the last checkpoint, and dying in the middle of a file.
STAND_IN = """
import ast, hashlib, json, os, pathlib, runpy, sys, time
from pc2seg_jax import config as config_lib, sweep_cells, workdir as workdir_lib

options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
base = runpy.run_path(options.pop("config"))["get_config"]()
folder = pathlib.Path(options.pop("workdir"))
with (folder.parent / "starts.csv").open("a") as starts:
    starts.write(f"{folder.name},{os.getpid()},{'-'.join(map(str, sorted(os.sched_getaffinity(0))))}\\n")
flat, changes = config_lib.flatten(base), {}
for key, text in options.items():
    like = flat[key.removeprefix("config.")]
    changes[key.removeprefix("config.")] = text if isinstance(like, str) else ast.literal_eval(text)
base.seed = changes.pop("seed")
config = sweep_cells.apply(base, changes)
if config.init_from == "broken":
    print("some words\\nerror: the weights are broken\\n")
    sys.exit(2)
if config.init_from == "empty":
    sys.exit(0)
split = workdir_lib.describe_split("all", ["a", "b"])
info = workdir_lib.DatasetInfo(("x",), [], 255, (1, 1), dict.fromkeys(("labeled", "unlabeled", "val"), split))
workdir_lib.claim(folder, config, info)
(folder / "evaluation").mkdir(exist_ok=True)
checkpoint, metrics = folder / "checkpoint", folder / "metrics.jsonl"
start = int(checkpoint.read_text()) if checkpoint.exists() else 0
lines = metrics.read_text().splitlines()[:start] if metrics.exists() else []
metrics.write_text("".join(line + "\\n" for line in lines))
for step in range(start + 1, config.steps + 1):
    time.sleep(float(os.environ.get("PAUSE", 0.001)))
    chance = hashlib.sha256(f"{sorted(config_lib.flatten(config).items())}{step}".encode()).digest()
    line = {"step": step, "seconds": 60.0 * step, "images_per_second": time.time(), "memory_gb": os.getpid()}
    line |= {"contrast/false_negative_rate": chance[1] / 256} if config.objective != "supervised" else {}
    with metrics.open("a") as file:
        file.write(json.dumps(line) + "\\n")
    if step % config.eval.every == 0 or step == config.steps:
        text = json.dumps({"miou": chance[0] / 4, "checkpoint": {"step": step}})
        with (folder / "evaluation" / f"{step}_val.json").open("w", buffering=1) as file:
            for letter in text:
                file.write(letter)
                file.flush()
        (folder / "new").write_text(str(step))
        (folder / "new").rename(checkpoint)
"""


def drive(place, grids, *, seeds=1, jobs=1, name="sweep", overrides=(), root="root"):
    """What the command does, in the folder `place`, with the stand-in and without JAX."""
    sweeping.TRAIN = (sys.executable, str(place / "train.py"))
    base = config_lib.load(place / "base.json")
    wanted = sweep_cells.load_grid(grids, base)
    rows = sweep_cells.make_rows(base, wanted, seeds=seeds, choices={})
    with sweeping.claim(place / root, base) as lock:
        failures = sweeping.run(rows, place / root, str(place / "base.py"), overrides, lock=lock, jobs=jobs)
        head = HEAD | {"name": name, "baseline": wanted.baseline}
        table = sweep_report.make_table(rows, place / root, failures, head)
        sweep_report.write(table, place / root)
    return table


@pytest.fixture
def place(tmp_path, tiny_config, monkeypatch):
    """A folder with the stand-in and a base configuration."""
    monkeypatch.setattr(sweeping, "TRAIN", ())  # `drive` sets it
    (tmp_path / "train.py").write_text(f"import sys; sys.path.insert(0, {str(HERE.parent)!r})\n{STAND_IN}")
    set_base(tmp_path, tiny_config())
    return tmp_path


def set_base(place, config):
    config_lib.save(config, place / "base.json")
    (place / "base.py").write_text(
        "import pathlib\nfrom pc2seg_jax import config\n\n\ndef get_config():\n"
        f"    return config.load(pathlib.Path({str(place / 'base.json')!r}))\n"
    )


def process(place, code, **environment):
    """The code in a process group of its own, with this module as `t`."""
    first = f"import pathlib, sys; sys.path.insert(0, {str(HERE)!r}); place = pathlib.Path({str(place)!r})"
    return subprocess.Popen(
        [sys.executable, "-c", f"{first}\nimport test_sweep as t\n{code}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
        cwd=HERE.parent,
        start_new_session=True,
    )


def starts(place, root="root"):
    path = place / root / "starts.csv"
    return list(csv.reader(path.read_text().splitlines())) if path.exists() else []


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def without_costs(table):
    text = json.dumps(table)
    for row in (table := json.loads(text))["rows"]:
        for entry in (row, *row["seeds"]):
            for name in sweep_report.COSTS:
                del entry[name]
    return table


@pytest.mark.parametrize(
    ("waiting", "running", "jobs", "seconds"),
    [
        (3, [], 1, 300),
        (4, [99], 2, 200),  # the second job is nearly done as well
        (0, [40], 2, 60),  # a job has no use for the other's cores
        (1, [90, 90], 4, 100),
        (0, [150], 2, 0),
        (0, [], 2, 0),
    ],
)
def test_what_remains_is_that_of_jobs_side_by_side(waiting, running, jobs, seconds):
    assert sweeping._remaining([80, 120], waiting, running, jobs).total_seconds() == seconds


def test_a_sweep_runs_every_cell_with_every_seed_and_writes_the_table(place):
    table = drive(place, [WEIGHTS], seeds=2, overrides=["steps"])
    assert len(starts(place)) == 6
    assert [row["label"] for row in table["rows"]] == [f"loss.contrast_weight={w}" for w in (0.0, 0.1, 0.3)]
    assert [[seed["seed"] for seed in row["seeds"]] for row in table["rows"]] == [[0, 1]] * 3
    for row in table["rows"]:
        for seed in row["seeds"]:
            folder = place / "root" / seed["folder"]
            results = [json.loads(path.read_text()) for path in folder.glob("evaluation/*")]
            assert len(results) == 3
            assert seed["miou"] == next(x["miou"] for x in results if x["checkpoint"]["step"] == 6)
            assert seed["best_miou"] == max(x["miou"] for x in results)
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            rates = [line["contrast/false_negative_rate"] for line in lines]
            assert seed["false_negative_rate"] == pytest.approx(100 * sum(rates) / 6)
            assert seed["minutes"] == 6
        a, b = (seed["miou"] for seed in row["seeds"])
        assert (row["miou"]["mean"], row["miou"]["std"]) == pytest.approx(((a + b) / 2, abs(a - b) / 2**0.5))
    first, second, _ = table["rows"]
    expected = [b["miou"] - a["miou"] for a, b in zip(first["seeds"], second["seeds"], strict=True)]
    assert second["difference"]["miou"]["by_seed"] == pytest.approx(expected)
    assert second["difference"]["boundary_miou"] is None  # the stand-in stores none
    assert "difference" not in first
    assert config_lib.load(place / "root" / "base" / "config.json") == config_lib.load(place / "base.json")
    assert json.loads((place / "root" / "sweep.json").read_text())["rows"] == table["rows"]


def test_finished_cells_are_shared_and_never_run_again(place):
    drive(place, [WEIGHTS], seeds=2)
    before = starts(place)
    first = drive(place, [WEIGHTS], seeds=2)
    assert starts(place) == before
    second = drive(place, ["config.loss.contrast_weight=0.1,0.5"], seeds=3)
    shared = {row[0] for row in before}
    new = [row[0] for row in starts(place)[len(before) :]]
    assert len(new) == len(set(new)) == 2 * 3 - 2
    assert not shared & set(new)
    seeds = [next(row for row in table["rows"] if "0.1" in row["label"])["seeds"] for table in (first, second)]
    assert seeds[1][:2] == seeds[0]
    (place / "root" / new[0] / "evaluation" / "6_val.json").unlink()
    drive(place, ["config.loss.contrast_weight=0.1,0.5"], seeds=3)
    assert [row[0] for row in starts(place)[len(before) + len(new) :]] == [new[0]]


def test_equal_cells_of_one_sweep_run_once(place, tiny_config):
    base = tiny_config()
    cells = {"a": {}, "b": {"loss.contrast_weight": 0.3}, "c": {"steps": 6}}
    sweeping.TRAIN = (sys.executable, str(place / "train.py"))
    rows = sweep_cells.make_rows(base, sweep_cells.Sweep(cells, {}, "a"), seeds=1, choices={})
    with sweeping.claim(place / "root", base) as lock:
        assert sweeping.run(rows, place / "root", str(place / "base.py"), [], lock=lock, jobs=2) == {}
    assert [row[0] for row in starts(place)] == ["base__seed=0"]


def test_a_root_belongs_to_one_base_whatever_its_seed(place, tiny_config):
    drive(place, ["config.steps=2"])
    set_base(place, tiny_config(seed=1))
    drive(place, ["config.steps=2"])
    assert [row[0] for row in starts(place)] == ["steps=2__seed=0", "steps=2__seed=1"]
    set_base(place, tiny_config(optim__power=0.5))
    with pytest.raises(
        UserError, match=r"root belongs to sweeps over another configuration: optim\.power: 0\.9 -> 0\.5"
    ):
        drive(place, ["config.steps=2"])
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(UserError, match="mine exists and is not the folder of a sweep"):
        drive(place, ["config.steps=2"], root="mine")
    assert [path.name for path in (place / "mine").iterdir()] == ["thesis.txt"]


def test_failed_cells_are_shown_and_the_others_go_on(place, capsys):
    table = drive(place, ["config.init_from=broken,empty,good"])
    failed = "1/3  init_from=broken, seed 0: failed, exit status 2: error: the weights are broken; remaining unknown\n"
    assert failed in capsys.readouterr().out
    assert [row["seeds"][0]["failure"] for row in table["rows"]] == [
        "exit status 2: error: the weights are broken",
        "it ended without its last evaluation: it has printed nothing",
        None,
    ]
    text = (place / "root" / "sweep.md").read_text()
    assert "| init_from=broken | init_from=broken | failed | failed | 0, 1 failed |" in text
    assert "- failed: `init_from=broken__seed=0`: exit status 2: error: the weights are broken" in text
    assert len(starts(place)) == 3
    drive(place, ["config.init_from=broken,empty,good"])
    assert len(starts(place)) == 5


def test_jobs_run_side_by_side_on_their_own_cores(place, monkeypatch):
    cores = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores | {62, 63})
    given = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, chosen: given.append(set(chosen)))
    table = drive(place, [WEIGHTS], jobs=2)
    everything = cores | {62, 63}
    shares = [chosen for chosen in given if chosen != everything]
    assert shares[0] | shares[1] == everything
    assert not shares[0] & shares[1]
    assert given[1::2] == [everything] * 3
    assert without_costs(table) == without_costs(drive(place, [WEIGHTS], root="alone"))


def test_a_run_killed_while_it_claimed_its_folder_is_run(place):
    folder = place / "root" / "steps=2__seed=0"
    drive(place, ["config.steps=4"])
    for names in (["dataset.json.part"], ["dataset.json", "config.json.part"]):
        folder.mkdir()
        for name in names:
            (folder / name).write_text('{"cut')
        assert drive(place, ["config.steps=2"])["rows"][0]["miou"] is not None
        folder.rename(place / f"done{len(names)}")


def test_kills_at_any_moment_leave_the_table_as_it_is_without_them(place):
    expected = drive(place, [WEIGHTS], seeds=2, root="whole")
    rng = random.Random(0)
    code = f"t.drive(place, [{WEIGHTS!r}], seeds=2)"
    for least in (2, 4):
        sweep = process(place, code, PAUSE="0.05")
        wait_for(lambda least=least: len(starts(place)) >= least)
        time.sleep(rng.uniform(0, 0.3))
        os.killpg(sweep.pid, signal.SIGKILL)
        assert sweep.wait() == -signal.SIGKILL
        assert not (place / "root" / "sweep.md").exists()
    killed = len(starts(place))
    found = drive(place, [WEIGHTS], seeds=2)
    assert len(starts(place)) > killed
    assert len(starts(place)) <= 6 + 2
    assert without_costs(found) == without_costs(expected)
    assert all(row["minutes"]["mean"] == 6 for row in found["rows"])


def test_a_run_that_is_left_behind_keeps_the_root_until_it_ends(place):
    code = "t.drive(place, ['config.steps=6,4'])"
    first = process(place, code, PAUSE="0.4")
    wait_for(lambda: len(starts(place)) == 1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = process(place, code)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0, out
    assert out.startswith("waiting for another sweep in ")
    assert "2 cells, 1 of them finished before" in out
    assert [row[0] for row in starts(place)] == ["base__seed=0", "steps=4__seed=0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_runs_and_says_how_to_go_on(place, number):
    """The real command, whose runs are the stand-in."""
    options = [f"--config={place}/base.py", "--grid=config.loss.window=0,100", f"--workdir={place}/root"]
    command = (
        f"import runpy; sys.argv = ['sweep', *{options}]; runpy.run_module('pc2seg_jax.sweep', run_name='__main__')"
    )
    code = f"t.sweeping.TRAIN = (sys.executable, {str(place / 'train.py')!r})\n{command}"
    sweep = process(place, code, PAUSE="5")
    wait_for(lambda: len(starts(place)) == 1)
    os.kill(sweep.pid, number)
    out, _ = sweep.communicate(timeout=30)
    assert sweep.returncode == 1
    assert re.fullmatch(r"2 cells, 0 of them finished before\ninterrupted: the same command goes on [^\n]*\n", out)
    with pytest.raises(ProcessLookupError):
        os.kill(int(starts(place)[0][1]), 0)


def test_the_command_trains_for_real_and_tells_of_a_cell_that_failed(place, tiny_config):
    set_base(place, tiny_config(steps=2, objective="supervised", teacher_momentum=0.0))
    options = [f"--config={place}/base.py", f"--workdir={place}/root", f"--output={place}/out"]
    grid = "--grid=config.init_from='',nothing.npz"
    command = [sys.executable, "-m", "pc2seg_jax.sweep", *options, grid, "--config.eval.mean_without=()"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 1
    assert re.fullmatch(r"1 cells failed, see [^\n]*\n", done.stderr), done.stderr
    table = json.loads((place / "out" / "sweep.json").read_text())
    good, bad = table["rows"]
    result = json.loads((place / "root" / "base__seed=0" / "evaluation" / "2_val.json").read_text())
    for name in ("miou", "boundary_miou"):
        assert (good[name]["mean"], good[name]["std"]) == (result[name], None)
    assert (table["baseline"], bad["difference"]["miou"]) == (good["label"], None)
    assert good["images_per_second"]["mean"] > 0
    assert bad["miou"] is None
    assert "nothing.npz" in bad["seeds"][0]["failure"]
    (val,) = table["splits"]["val"]
    assert (val["count"], table["overrides"]) == (5, {"eval.mean_without": []})
    assert table["hardware"].startswith("1 x cpu, ")
    assert (place / "out" / "sweep.md").read_text() in done.stdout


def test_the_command_needs_a_grid_or_a_sweep_file(place):
    command = [sys.executable, "-m", "pc2seg_jax.sweep", f"--config={place}/base.py", f"--workdir={place}/root"]
    for extra in ([], ["--grid=config.steps=2", "--sweep=configs/sweeps/table5.py"]):
        done = subprocess.run([*command, *extra], capture_output=True, text=True, cwd=HERE.parent)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"error: [^\n]*name what to sweep: either --grid=[^\n]*\n", done.stderr)


def test_the_sweep_itself_takes_no_device_that_its_runs_need():
    code = "from pc2seg_jax import build, sweep_report, sweeping; from jax._src import xla_bridge as x; "
    command = [sys.executable, "-c", code + "print(x.backends_are_initialized())"]
    assert subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent).stdout == "False\n"
