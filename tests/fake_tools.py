"""Fake executables of clouds and clusters for the launchers: they record their arguments and answer from files."""

import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent

# An answer is chosen by the first word of the arguments that has a folder $ANSWERS/<word>: its lowest-numbered file is
# used up (the last one stays); the first line is the exit status, the rest is printed.
FAKE = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
for word in "$(basename "$0")" "$@"; do
  folder="$ANSWERS/${word%%=*}"
  if [ -d "$folder" ]; then
    mapfile -t files < <(ls "$folder" | sort -n)
    status="$(head -n 1 "$folder/${files[0]}")"
    tail -n +2 "$folder/${files[0]}"
    [ "${#files[@]}" = 1 ] || rm "$folder/${files[0]}"
    exit "$status"
  fi
done
"""


class Project:
    """A copy of the launchers in a git checkout of its own, with fake tools on the PATH."""

    def __init__(self, folder):
        self.root, self.calls, self.answers = folder / "project", folder / "calls", folder / "answers"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        for name in ("requirements.txt", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "configs").mkdir()
        (self.root / "configs" / "voc12.py").write_text("")
        for command in (["init", "-q"], ["add", "-A"]):
            subprocess.run(["git", *command], cwd=self.root, check=True)
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.answers.mkdir()
        self.calls.write_text("")

    def tools(self, *names):
        for name in names:
            (self.bin / name).write_text(FAKE)
            (self.bin / name).chmod(0o755)

    def answer(self, word, *answers):
        """answers: (exit status, text) of the calls that have the word, one after the other."""
        (self.answers / word).mkdir()
        for i, (status, text) in enumerate(answers):
            (self.answers / word / str(i)).write_text(f"{status}\n{text}\n" if text else f"{status}\n")

    def environment(self, **more):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        own = {"PATH": f"{self.bin}:{os.environ['PATH']}", "CALLS": str(self.calls), "ANSWERS": str(self.answers)}
        return clean | own | {"HOME": str(self.root)} | more

    def run(self, script, *arguments, timeout=60, **more):
        command = ["bash", f"launch/{script}", *arguments]
        options = {"cwd": self.root, "env": self.environment(**more), "timeout": timeout}
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    def called(self):
        return self.calls.read_text().splitlines()
