"""Methods compared over seeds, against scipy, and what cannot be compared."""

import numpy as np
import pytest
import scipy.stats
from test_comparison import confusions, entry

from pc2seg_jax import seeds
from pc2seg_jax.errors import UserError

BASE, OTHER = [30.0, 34.0, 27.0], [31.0, 33.0, 30.0]


def method(name, values, first_seed=0, **changes):
    runs = [(first_seed + i, entry(f"{name}_{i}", confusions(), miou=x, **changes)) for i, x in enumerate(values)]
    return seeds.group(f"{name}_*", runs)


def test_means_and_intervals_are_those_of_scipy():
    first, second = seeds.compare([method("a", BASE), method("b", OTHER)])
    for row, values in ((first, BASE), (second, OTHER)):
        assert row["seeds"] == [0, 1, 2]
        assert row["miou"]["mean"] == pytest.approx(np.mean(values))
        assert row["miou"]["std"] == pytest.approx(np.std(values, ddof=1))
        theirs = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
        assert row["miou"]["interval"] == pytest.approx(theirs)
        assert row["boundary_miou"] is None
    assert "difference" not in first


def test_differences_are_paired_by_seed():
    shuffled = seeds.group("b_*", [(i, entry(f"b_{i}", confusions(), miou=OTHER[i])) for i in (2, 0, 1)])
    difference = seeds.compare([method("a", BASE), shuffled])[1]["difference"]["miou"]
    assert difference["by_seed"] == [1.0, -1.0, 3.0]
    assert (difference["mean"], difference["std"]) == (pytest.approx(1.0), pytest.approx(2.0))
    theirs = scipy.stats.ttest_rel(OTHER, BASE).confidence_interval(0.95)
    assert difference["interval"] == pytest.approx([theirs.low, theirs.high])


def test_every_score_has_its_differences():
    def with_scores(name, boundary):
        runs = enumerate(zip(BASE, boundary, strict=True))
        entries = [(i, entry(f"{name}_{i}", confusions(), miou=x, boundary_miou=y)) for i, (x, y) in runs]
        return seeds.group(f"{name}_*", entries)

    rows = seeds.compare([with_scores("a", [10.0, 12.0, 8.0]), with_scores("b", [11.0, 12.5, 8.25])])
    assert rows[1]["difference"]["boundary_miou"]["by_seed"] == [1.0, 0.5, 0.25]
    assert rows[1]["difference"]["miou"]["by_seed"] == [0.0, 0.0, 0.0]
    of = [line.split()[1] for line in seeds.table(rows).splitlines()[5:-1]]
    assert of == ["mIoU", "boundary", "accuracy"]
    without = seeds.compare([with_scores("a", [10.0, 12.0, 8.0]), with_scores("b", [11.0, None, 8.25])])
    assert without[1]["boundary_miou"] is None
    assert without[1]["difference"]["boundary_miou"] is None


def test_the_table_names_seeds_and_signs():
    text = seeds.table(seeds.compare([method("a", BASE), method("b", OTHER)]))
    head, first, second, empty, title, of_miou, of_accuracy, note = text.splitlines()
    assert head.split()[:4] == ["runs", "seeds", "step", "mIoU"]
    assert first.split()[:5] == ["a_*", "0,", "1,", "2", "9"]
    assert "30.33 ± 3.51" in first
    assert "31.33 ± 1.53" in second
    assert empty == ""
    assert title.startswith("difference to a_*")
    assert of_miou.startswith("b_*")
    assert "+1.00 ± 2.00 [-3.97, +5.97]" in of_miou
    assert of_miou.endswith("+1.00, -1.00, +3.00")
    assert "accuracy" in of_accuracy
    assert note.startswith("in %")


def test_runs_of_different_length_are_seen():
    early = method("b", OTHER, checkpoint={"step": 4})
    early.entries[1] = method("b", OTHER).entries[1]
    row = seeds.compare([method("a", BASE), early])[1]
    assert row["steps"] == [4, 9, 4]
    assert seeds.table([row]).splitlines()[1].split()[4:6] == ["4,", "9"]


def test_one_seed_has_no_spread():
    first, second = seeds.compare([method("a", BASE[:1]), method("b", OTHER[:1])])
    assert first["miou"] == {"mean": 30.0, "std": None, "interval": [None, None]}
    assert seeds.table([first, second]).splitlines()[5].split()[-2:] == ["+1.00", "+1.00"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (method("b", OTHER[:2]), "b_\\* has the seeds 0, 1, and a_\\* 0, 1, 2"),
        (method("b", OTHER, first_seed=1), "same ones"),
        (method("b", OTHER, split={"sha256": "b"}), "b_0 was evaluated with other images than a_0"),
    ],
)
def test_what_cannot_be_compared_is_named(other, words):
    with pytest.raises(UserError, match=words):
        seeds.compare([method("a", BASE), other])


def test_two_runs_of_one_seed_are_not_one_method():
    with pytest.raises(UserError, match="two runs of seed 0, a and b"):
        seeds.group("*", [(0, entry("a", confusions())), (0, entry("b", confusions()))])


def test_a_pattern_finds_runs_alone(tmp_path):
    for name in ("b_1", "b_0", "c_0", "b_unfinished"):
        (tmp_path / name).mkdir()
        if name != "b_unfinished":
            (tmp_path / name / "config.json").touch()
    (tmp_path / "b_note.txt").touch()
    assert seeds.find_runs(f"{tmp_path}/b_*") == [tmp_path / "b_0", tmp_path / "b_1"]
    assert seeds.find_runs(f"{tmp_path}/c_0") == [tmp_path / "c_0"]
    odd = tmp_path / "c[1]"
    odd.mkdir()
    (odd / "config.json").touch()
    assert not seeds.is_pattern(str(odd))
    assert seeds.find_runs(str(odd)) == [odd]
    for pattern, words in (
        (f"{tmp_path}/d*", "it would hold config.json"),
        (f"{tmp_path}/*/b", "before its last part"),
    ):
        with pytest.raises(UserError, match=words):
            seeds.find_runs(pattern)
