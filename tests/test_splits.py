"""Lists of labelled images: published ones are taken only as published, generated ones are the same everywhere."""

import functools
import hashlib
import http.server
import json
import pathlib
import re
import threading

import numpy as np
import pytest

from pc2seg_jax.data import splits
from pc2seg_jax.errors import UserError

VOC = tuple(f"2007_{number:06d}" for number in range(40))
LISTED = ("2007_000032", "2007_000007", "2007_000039")


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """publish(dataset, content, served=content): serves the list `fake`; returns the paths that have been asked for."""
    public = tmp_path / "public"
    public.mkdir()
    asked = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(public))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("PC2SEG_CACHE", str(tmp_path / "cache"))

        def publish(dataset, content, served=None):
            (public / "fake.txt").write_bytes(content if served is None else served)
            fake = splits.Published(
                f"http://127.0.0.1:{server.server_port}/fake.txt", 3, hashlib.sha256(content).hexdigest()
            )
            monkeypatch.setitem(splits.PUBLISHED[dataset], "fake", fake)
            return asked

        yield publish
        server.shutdown()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_a_published_list_is_downloaded_once(tmp_path, publish):
    asked = publish("voc2012", "\n".join(LISTED).encode())
    for _ in range(2):
        assert splits.choose("fake", dataset="voc2012", train_ids=VOC) == ("voc2012/fake", LISTED)
    assert asked == ["/fake.txt"]
    assert (tmp_path / "cache" / "splits" / "voc2012" / "fake.txt").is_file()


def test_a_download_with_one_wrong_byte_is_refused_and_not_kept(tmp_path, publish):
    content = "\n".join(LISTED).encode()
    publish("voc2012", content, served=content.replace(b"39", b"38"))
    cached = tmp_path / "cache" / "splits" / "voc2012" / "fake.txt"
    with pytest.raises(UserError, match=f"voc2012/fake of 3 images is damaged.*fetch http.*fake.txt.*{cached}"):
        splits.choose("fake", dataset="voc2012", train_ids=VOC)
    assert list(cached.parent.iterdir()) == []


def test_a_cached_file_with_one_wrong_byte_is_refused_and_left_alone(tmp_path, publish):
    content = "\n".join(LISTED).encode()
    asked = publish("voc2012", content)
    wrong = content.replace(b"39", b"38").decode()
    cached = write(tmp_path / "cache" / "splits" / "voc2012" / "fake.txt", wrong)
    with pytest.raises(UserError, match=f"{cached} is not the published file of the list voc2012/fake.*delete it"):
        splits.choose("fake", dataset="voc2012", train_ids=VOC)
    assert asked == []
    assert cached.read_text() == wrong
    cached.unlink()
    assert splits.choose("fake", dataset="voc2012", train_ids=VOC).ids == LISTED


def test_offline_a_sentence_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("PC2SEG_CACHE", str(tmp_path))
    address = "http://127.0.0.1:1/8_clean.txt"  # nothing listens there
    content = "\n".join(LISTED)
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    monkeypatch.setitem(splits.PUBLISHED["voc2012"], "fake", splits.Published(address, 3, sha256))
    by_hand = tmp_path / "splits" / "voc2012" / "fake.txt"
    message = (
        f"the list voc2012/fake of 3 images cannot be downloaded .*fetch {address} by hand and put it at {by_hand}"
    )
    with pytest.raises(UserError, match=message) as error:
        splits.choose("fake", dataset="voc2012", train_ids=VOC)
    assert "\n" not in str(error.value)
    write(by_hand, content)
    assert splits.choose("fake", dataset="voc2012", train_ids=VOC).ids == LISTED


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PC2SEG_CACHE", str(write(tmp_path / "file", "")))
    with pytest.raises(UserError, match=f"voc2012/1_8 .*cannot be kept in {tmp_path}/file.*set PC2SEG_CACHE"):
        splits.choose("1_8", dataset="voc2012", train_ids=VOC)


AACHEN = ("aachen_000000_000019", "aachen_000001_000019")
AACHEN_FILE = "leftImg8bit/train/aachen/{0}_leftImg8bit.png gtFine/train/aachen/{0}_gtFine_labelTrainIds.png"


@pytest.mark.parametrize(
    ("dataset", "text", "ids"),
    [
        ("voc2012", "2007_000032\n2007_000007\n2007_000039\n", LISTED),
        ("voc2012", "2007_000032\r\n2007_000007\r\n2007_000039", LISTED),
        ("voc2012", "\ufeff2007_000032\n\n  2007_000007  \n2007_000039\n\n", LISTED),
        ("voc2012", "".join(f"JPEGImages/{id_}.jpg SegmentationClass/{id_}.png\n" for id_ in LISTED), LISTED),
        ("coco", "train2017/000000000009\ntrain2017/000000000025\n", ("000000000009", "000000000025")),
        ("coco", "train2017/000000000009.jpg\n000000000025", ("000000000009", "000000000025")),
        ("cityscapes", "\n".join(AACHEN_FILE.format(id_) for id_ in AACHEN), AACHEN),
        ("cityscapes", "aachen_000000_000019\naachen/aachen_000001_000019_leftImg8bit\n", AACHEN),
        (None, "site a/img 1.jpg\nimg.2.PNG\nimg.3", ("site a/img 1", "img.2", "img.3")),
    ],
)
def test_every_format_of_a_line_is_the_same_id(tmp_path, publish, dataset, text, ids):
    write(tmp_path / "lists" / "my.txt", text)
    others = ("another", *ids[::-1])
    split = splits.choose("lists/my.txt", dataset=dataset, train_ids=others, root=tmp_path)
    assert split == ("lists/my.txt", ids)
    if dataset:
        publish(dataset, text.encode())
        assert splits.choose("fake", dataset=dataset, train_ids=others) == (f"{dataset}/fake", ids)


def test_a_file_is_looked_for_in_the_working_directory_or_where_its_path_says(tmp_path, monkeypatch):
    path = write(tmp_path / "my.txt", "2007_000032")
    assert splits.choose(str(path), dataset="voc2012", train_ids=VOC, root=tmp_path / "other").ids == LISTED[:1]
    monkeypatch.chdir(tmp_path)
    assert splits.choose("my.txt", dataset="voc2012", train_ids=VOC).ids == LISTED[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "my.txt is empty"),
        ("\n \n", "my.txt is empty"),
        ("2007_000032\nJPEGImages/2007_000032.jpg\n", "'2007_000032' is twice in the list my.txt"),
        (
            "2007_000032\n2007_999999\n2008_000001\n",
            "'2007_999999' in the list my.txt is not among the 40 training images of voc2012 .2 of 3 ids",
        ),
        ("2007_000032\n\udcff", "my.txt as UTF-8"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path, text, message):
    (tmp_path / "my.txt").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        splits.choose("my.txt", dataset="voc2012", train_ids=VOC, root=tmp_path)


def test_a_published_list_of_images_that_are_not_there_is_refused(publish):
    publish("voc2012", "\n".join(LISTED).encode())
    with pytest.raises(UserError, match=r"'2007_000039' in the list voc2012/fake.*39 training images.*1 of 3"):
        splits.choose("fake", dataset="voc2012", train_ids=VOC[:39])


@pytest.mark.parametrize("dataset", ["voc2012", "cityscapes", "coco", None])
@pytest.mark.parametrize("spec", ["1_3", "1/8", "", "missing.txt", "every 1/2", "every 1/2.5 with seed 0", "x" * 999])
def test_an_unknown_list_is_answered_with_those_that_exist(tmp_path, dataset, spec):
    with pytest.raises(UserError, match=re.escape(repr(spec))) as error:
        splits.choose(spec, dataset=dataset, train_ids=VOC, root=tmp_path)
    for known in (*splits.names(dataset), "every 1/N with seed S", str(tmp_path)):
        assert known in str(error.value)


@pytest.mark.parametrize(
    ("n", "every", "seed"), [(40, 1, 0), (40, 8, 0), (41, 8, 3), (39, 8, 3), (40, 100, 4294967295)]
)
@pytest.mark.parametrize("dataset", ["coco", None])
def test_every_nth_against_a_slow_twin(n, every, seed, dataset):
    ids = [f"image {number}" for number in range(n)]
    order = np.random.RandomState(seed).permutation(n)
    expected = []
    for position in range(n):
        if position % every == 0:
            expected.append(sorted(ids)[order[position]])
    spec = f"every 1/{every} with seed {seed}"
    for train_ids in (ids, ids[::-1]):
        assert splits.choose(spec, dataset=dataset, train_ids=train_ids) == (f"{spec} of train", tuple(expected))
    assert len(expected) == -(-n // every)


@pytest.mark.parametrize("spec", ["every 1/0 with seed 0", "every 1/8 with seed 4294967296"])
def test_an_impossible_rule_is_refused(spec):
    with pytest.raises(UserError, match=f"{spec}' is impossible"):
        splits.choose(spec, dataset=None, train_ids=VOC)


def test_train_is_every_training_image():
    assert splits.choose("train", dataset="voc2012", train_ids=VOC) == ("voc2012/train", VOC)


@pytest.mark.parametrize(("name", "every", "count"), [("1_8", 8, 14786), ("1_16", 16, 7393)])
def test_the_lists_of_coco_that_were_never_published_are_the_rule(name, every, count):
    ids = [f"{number:012d}" for number in range(118287)]
    split = splits.choose(name, dataset="coco", train_ids=ids)
    assert split.name == f"coco/{name}"
    assert split.ids == splits.choose(f"every 1/{every} with seed 0", dataset="coco", train_ids=ids).ids
    assert len(split.ids) == count
    with pytest.raises(UserError, match=f"coco/{name} is drawn from.*118286 are others: complete the dataset"):
        splits.choose(name, dataset="coco", train_ids=ids[1:])


@pytest.mark.parametrize(
    ("seed", "first"),
    [
        (12345, [1687, 2342, 392, 1338, 76]),
        (23456, [1490, 930, 2124, 2684, 182]),
        (34567, [696, 2808, 480, 905, 1723]),
        (45678, [1129, 206, 712, 2942, 1922]),
        (56789, [728, 1678, 2615, 1461, 425]),
    ],
)
def test_the_draws_begin_as_those_of_french_et_al(seed, first):
    ids = [f"{number:04d}" for number in range(2975)]
    assert [int(id_) for id_ in splits.permuted(ids[::-1], seed)[:5]] == first


@pytest.fixture(scope="module")
def cityscapes():
    """The 2,975 training ids: in regular cities sequences count up and the frame is 19; other frames are listed."""
    frames = json.loads((pathlib.Path(__file__).parent / "cityscapes_frames.json").read_text())
    regular = frames.pop("regular")
    ids = [f"{city}_{sequence:06d}_000019" for city, count in regular.items() for sequence in range(count)]
    ids += [f"{sequence}_{frame:06d}" for sequence, numbers in frames.items() for frame in numbers]
    return ids


@pytest.mark.parametrize("name", splits.CITYSCAPES_DRAWS)
def test_the_draws_of_cityscapes_are_those_of_french_et_al(cityscapes, name):
    split = splits.choose(name, dataset="cityscapes", train_ids=cityscapes[::-1])
    text = "".join(f"{id_}\n" for id_ in split.ids)
    assert hashlib.sha256(text.encode()).hexdigest() == splits.CITYSCAPES_DRAWS[name].sha256
    assert split.name == f"cityscapes/{name}"
    assert len(split.ids) == {"1_30": 100, "1_8": 372, "1_4": 744}[name.rsplit("_", 1)[0]]


def test_a_numpy_that_draws_otherwise_is_refused(cityscapes, monkeypatch):
    monkeypatch.setattr(splits, "permuted", lambda ids, seed: sorted(ids))
    with pytest.raises(UserError, match=r"NumPy .* draws another list than cityscapes/1_8_seed12345"):
        splits.choose("1_8_seed12345", dataset="cityscapes", train_ids=cityscapes)


def test_a_cityscapes_with_one_other_image_has_no_draws(cityscapes):
    others = ("aachen_999999_000019", *cityscapes[1:])
    with pytest.raises(UserError, match=r"cityscapes/1_8_seed12345 is drawn from.*2975 are others"):
        splits.choose("1_8_seed12345", dataset="cityscapes", train_ids=others)


def test_cityscapes_draws_need_all_of_cityscapes():
    for name in splits.CITYSCAPES_DRAWS:
        with pytest.raises(UserError, match=f"cityscapes/{name} is drawn from.*2 are others: complete the dataset"):
            splits.choose(name, dataset="cityscapes", train_ids=AACHEN)


def test_every_name_has_a_full_address_and_a_hash_of_its_own():
    counts = {"2": 732, "4": 366, "8": 183, "16": 92, "30": 100, "32": 3697, "64": 1849, "128": 925, "256": 463}
    counts = {"voc2012": counts, "coco": counts | {"512": 232}, "cityscapes": {"30": 100, "8": 372, "4": 744}}
    hashes, addresses = [], []
    for dataset, lists in splits.PUBLISHED.items():
        for name, published in lists.items():
            assert published.count == counts[dataset][name.split("_")[1]], name
            assert published.address.startswith("https://raw.githubusercontent.com/")
            assert published.address.endswith(".txt")
            hashes.append(published.sha256)
            addresses.append(published.address)
        assert len(set(splits.names(dataset))) == len(splits.names(dataset))
    for name, draw in splits.CITYSCAPES_DRAWS.items():
        ratio, seed = re.fullmatch("1_([0-9]+)_seed([0-9]+)", name).groups()
        assert draw[:2] == (int(seed), counts["cityscapes"][ratio])
        hashes.append(draw.sha256)
    assert [len(lists) for lists in splits.PUBLISHED.values()] == [7, 9, 5]
    assert len(set(addresses)) == 21
    assert len(set(hashes)) == 36
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in hashes)
    assert splits.names(None) == ()
