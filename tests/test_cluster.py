"""A gallery embedded on a Ray cluster: two real processes, one of them killed, and what else may happen to a job."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow.fs import LocalFileSystem

from tiprctl.errors import ImageError, InputError, UsageError
from tiprctl.gallery.cluster import commits as cluster_commits
from tiprctl.gallery.cluster import session as cluster_session
from tiprctl.gallery.cluster import sources
from tiprctl.gallery.cluster.adding import Layout, add_with_ray
from tiprctl.gallery.cluster.commits import Committer
from tiprctl.gallery.cluster.rows import KnownRows
from tiprctl.gallery.cluster.session import connected
from tiprctl.gallery.cluster.sources import list_objects, read_image
from tiprctl.gallery.cluster.stages import DAMAGED, PIXELS, REASON, Decode, Embed, Write
from tiprctl.gallery.filling.adding import Reading, add
from tiprctl.gallery.filling.listing import ImageFile, Listing
from tiprctl.gallery.filling.metadata import Describer
from tiprctl.gallery.filling.patterns import PathPattern
from tiprctl.gallery.filling.walking import list_images
from tiprctl.gallery.keeping import upkeep
from tiprctl.gallery.keeping.schema import OWN_COLUMNS, ModelIdentity
from tiprctl.gallery.keeping.store import GalleryStore, Written
from tiprctl.gallery.searching.optimising import tidy

LAYOUT = Layout(actors=2, block=4, fragment=8)
SIZE = (4, 3)


class Colours:
    """A model whose vector of an image is its mean colour; it notes in a folder which process embedded a batch."""

    width, image_size, precision = 3, SIZE, "float32"
    description = source = "colours"

    def __init__(self, notes: Path | None = None, fingerprint: str = "colours"):
        self.notes = notes
        self.fingerprint = fingerprint
        self.batches = 0

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        self.batches += 1
        if self.notes:
            (self.notes / f"{os.getpid()}-{self.batches}").touch()
            time.sleep(0.3)
        vectors = pixels.mean((1, 2)).astype(np.float32) + 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def ray_cluster():
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        # The workers import this module.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        with connected(cpus=4) as ray:
            yield ray


@pytest.fixture
def crops(tmp_path):
    """24 images of as many colours."""
    folder = tmp_path / "crops"
    for number in range(24):
        file = folder / f"cam_{number % 2}" / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (10 * number, 250 - 10 * number, 7)).save(file)
    return folder


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path / "gallery.lance")


def new_store(uri):
    return GalleryStore.create(uri, ModelIdentity.of(Colours()))


def embed(store, folder, images=None, model=Colours, **further):
    images = list_images(folder).images if images is None else images
    return add_with_ray(store, str(folder), images, model, SIZE, layout=LAYOUT, **further)


def rows_of(uri):
    """The rows of a gallery as anyone sees it who opens it, without the numbering of times of change."""
    rows = lance.dataset(str(uri)).to_table().to_pylist()
    return sorted(rows, key=lambda row: row["path"])


def paths_of(uri):
    return [row["path"] for row in rows_of(uri)]


def written(store, *paths):
    """What a worker says after it wrote rows of these paths."""
    columns = {name: pa.nulls(len(paths), kind) for name, kind in OWN_COLUMNS.items()}
    vectors = pa.array([[1.0, 0.0, 0.0]] * len(paths), pa.list_(pa.float32(), 3))
    reasons = pa.nulls(len(paths), pa.string())
    batch = pa.table(
        columns | {"path": list(paths), "vector": vectors, REASON: reasons, DAMAGED: pa.nulls(len(paths), pa.bool_())}
    )
    (row,) = Write(store.uri, store.schema)(batch).to_pylist()
    return row


def files_of(store):
    return {file.name for file in Path(store.uri, "data").iterdir()}


def test_two_processes_make_the_rows_that_one_would(ray_cluster, store, crops, tmp_path):
    """And tell the same of what cannot be read: one image is cut off, one is deleted after it was listed."""
    (crops / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    listing = list_images(crops)
    (crops / "cam_0/00.png").unlink()
    reading = Reading(describer=Describer(camera=PathPattern.parse("{camera}/*", "camera")), batch_size=3)
    changes = embed(store, crops, listing.images, reading=reading)
    assert (changes.images, changes.added, changes.unchanged) == (25, 23, 0)
    alone = new_store(tmp_path / "alone.lance")
    expected = add(alone, listing, Colours(), reading)
    assert rows_of(store.uri) == rows_of(alone.uri)
    assert {row["camera"] for row in rows_of(store.uri)} == {"cam_0", "cam_1"}
    reasons = {each.path: each.reason for each in changes.unreadable}
    assert reasons == {str(crops / each.path): each.reason for each in expected.unreadable}
    assert reasons[str(crops / "cam_0/00.png")] == "it was deleted after it had been listed"
    damaged = {str(crops / each.path): each.damaged for each in expected.unreadable}
    assert {each.path: each.damaged for each in changes.unreadable} == damaged
    assert sorted(damaged.values()) == [False, True]


def test_given_again_it_embeds_what_is_new_or_changed(ray_cluster, store, crops, tmp_path):
    """Ten images have their rows. Of these one was painted over, one damaged, and one damaged and added anew."""
    first = list_images(crops).images[:10]
    add(store, Listing(crops, first, []), Colours())
    painted, damaged = crops / "cam_0/00.png", crops / "cam_0/02.png"
    Image.new("RGB", SIZE[::-1], "white").save(painted)
    damaged.write_bytes(b"")
    notes = tmp_path / "notes"
    notes.mkdir()
    listed = list_images(crops).images
    changes = embed(store, crops, listed, model=partial(Colours, notes))
    assert (changes.images, changes.unchanged, changes.added, changes.updated, changes.removed) == (24, 8, 14, 1, 1)
    assert [Path(each.path).name for each in changes.unreadable] == ["02.png"]
    assert len(list(notes.iterdir())) == 5, "fourteen images are four blocks of four, what changed is one"
    alone = new_store(tmp_path / "alone.lance")
    add(alone, list_images(crops), Colours())
    assert rows_of(store.uri) == rows_of(alone.uri)
    files = {file.path for each in lance.dataset(store.uri).get_fragments() for file in each.metadata.files}
    assert files_of(store) == files, "what a worker wrote of a changed image is deleted"


def test_a_worker_refuses_another_model_than_the_gallerys(store):
    """That a worker's error ends the job, and is told as it is, another test says."""
    worker = Embed(store.uri, partial(Colours, None, "another"), 4)
    with pytest.raises(UsageError, match="indexed with another model") as caught:
        worker(pa.table({"path": ["/a"], PIXELS: [bytes(36)]}))
    assert caught.value.where == store.uri


def test_what_was_written_before_the_job_failed_is_kept(ray_cluster, store, crops, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()

    class Failing(Colours):
        def embed_images(self, pixels):
            if len(list(self.notes.iterdir())) > 4:
                raise InputError("The weights are damaged", remedy="Train again.")
            return super().embed_images(pixels)

    one = replace(LAYOUT, actors=1, fragment=4)
    with pytest.raises(InputError, match="The weights are damaged"):
        add_with_ray(store, str(crops), list_images(crops).images, partial(Failing, notes), SIZE, layout=one)
    gc.collect()  # Ray's objects of the failed job hold its workers, and their cores, which later tests want
    kept = len(paths_of(store.uri))
    assert 0 < kept < 24
    assert add(store, list_images(crops), Colours()).unchanged == kept
    assert len(set(paths_of(store.uri))) == 24


def test_a_commit_leaves_out_what_another_writer_added(store):
    committer = Committer(store)
    row = written(store, "/a", "/b")
    other = GalleryStore.open(store.uri)
    other.put(pa.table({"path": ["/b"], "hash": ["theirs"], "vector": [[0.0, 1.0, 0.0]]}))
    assert committer.commit([row]).inserted == 1
    assert [(each["path"], each["hash"]) for each in rows_of(store.uri)] == [("/a", None), ("/b", "theirs")]
    committed = {file.path for each in lance.dataset(store.uri).get_fragments() for file in each.metadata.files}
    assert files_of(store) == committed, "the file of the double is deleted"
    assert committer.commit([written(store, "/b")]).inserted == 0, "another writer's rows count for all later commits"
    assert committer.commit([]).inserted == 0


def test_a_writer_between_the_comparison_and_the_commit_loses_and_makes_no_double(store, monkeypatch):
    committer = Committer(store)
    row = written(store, "/a", "/b")
    merged = committer._merged
    rival = [pa.table({"path": ["/a"], "vector": [[0.0, 1.0, 0.0]]})]

    def late(fragments):
        if rival:
            GalleryStore.open(store.uri).put(rival.pop())
        return merged(fragments)

    monkeypatch.setattr(committer, "_merged", late)
    assert committer.commit([row]).inserted == 1
    assert paths_of(store.uri) == ["/a", "/b"]


def test_rows_of_changed_images_replace_those_of_the_same_paths(store):
    store.put(pa.table({"path": ["/a", "/b"], "hash": ["old", "old"], "vector": [[0.0, 1.0, 0.0]] * 2}))
    committer = Committer(store)
    assert committer.replace([written(store, "/a"), written(store, "/c")]) == Written(1, 1)
    assert [(each["path"], each["hash"]) for each in rows_of(store.uri)] == [("/a", None), ("/b", "old"), ("/c", None)]
    assert committer.commit([written(store, "/d")]) == Written(1, 0)
    assert paths_of(store.uri) == ["/a", "/b", "/c", "/d"]


def test_images_are_wanted_unless_their_row_has_their_size_and_time(store):
    rows = {"path": ["/in/a", "/in/b", "/in/c", "/in/d"], "size": [1, 1, 1, None], "mtime_ns": [5, 5, 5, 5]}
    store.put(pa.table(rows | {"vector": [[0.0, 1.0, 0.0]] * 4}))
    known = KnownRows(store)
    images = [ImageFile("a", 1, 5), ImageFile("b", 2, 5), ImageFile("c", 1, 4), ImageFile("d", 1, 5)]
    wanted = known.wanted("/in", [*images, ImageFile("e", 1, 5)])
    assert [(each.image.path, each.row) for each in wanted] == [
        ("b", (1, 5)), ("c", (1, 5)), ("d", (-1, 5)), ("e", None)
    ]  # fmt: skip
    stale = known.stale("/in", wanted[:3], {"/in/c", "/in/e"})
    assert stale.to_pylist() == [{"path": "/in/c", "size": 1, "mtime_ns": 5}]
    assert store.remove_unchanged(stale) == 1
    assert [
        each.image.path for each in KnownRows(GalleryStore.in_memory(store.identity)).wanted("/in", images)
    ] == list("abcd")


def test_a_compaction_that_began_before_a_commit_is_begun_anew(store, monkeypatch):
    for path in ("/a", "/b"):
        store.put(pa.table({"path": [path], "vector": [[0.0, 1.0, 0.0]]}))
    compact, row = upkeep.compact, [written(store, "/c")]

    def late(stale):
        if row:
            Committer(GalleryStore.open(store.uri)).commit([row.pop()])
        return compact(stale)

    monkeypatch.setattr(upkeep, "compact", late)
    tidy(store)
    assert paths_of(store.uri) == ["/a", "/b", "/c"]
    assert len(lance.dataset(store.uri).get_fragments()) == 1


@pytest.mark.parametrize("indexed", [False, True])
def test_a_writer_with_a_stale_view_finds_the_committed_rows(store, monkeypatch, indexed):
    if indexed:
        upkeep.index_scalars(store)
        store.refresh()
    stale = GalleryStore.open(store.uri)
    monkeypatch.setattr(stale, "refresh", lambda: None)
    Committer(store).commit([written(store, "/a", "/b")])
    stale.put(pa.table({"path": ["/b", "/c"], "vector": [[0.0, 1.0, 0.0]] * 2}))
    assert paths_of(store.uri) == ["/a", "/b", "/c"]


def test_a_gallery_in_constant_change_is_given_up(store, monkeypatch):
    committer = Committer(store)
    row = written(store, "/a")
    monkeypatch.setattr(cluster_commits, "_TRIES", 3)
    monkeypatch.setattr(committer, "_merged", lambda fragments: False)
    with pytest.raises(InputError, match="change the gallery all the time"):
        committer.commit([row])
    assert not paths_of(store.uri)


def test_an_index_survives_the_commit(store):
    store.put(pa.table({"path": ["/a"], "vector": [[0.0, 1.0, 0.0]]}))
    store.dataset.create_scalar_index("path", "BTREE")
    store.refresh()
    Committer(store).commit([written(store, "/b")])
    dataset = lance.dataset(store.uri)
    assert [index.name for index in dataset.describe_indices()] == ["path_idx"]
    assert dataset.count_rows("path = '/a'") == dataset.count_rows("path = '/b'") == 1


def test_times_of_the_pictures_go_before_those_of_the_files(crops):
    from datetime import datetime

    files = sorted(str(file) for file in crops.rglob("*.png"))[:2]
    given, taken = datetime(2020, 1, 1), datetime(2026, 11, 21, 8, 30)
    first = Path(files[0]).read_bytes()
    decode = Decode(SIZE, lambda content: taken if content == first else None)
    batch = pa.table({"path": files, "time": pa.array([given, given], pa.timestamp("us"))})
    assert decode(batch)["time"].to_pylist() == [taken, given]


def test_without_ray_the_package_is_named(store, crops, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="needs the package ray") as caught:
        embed(store, crops)
    assert "tiprctl[cluster]" in caught.value.remedy


def in_a_process(code, *arguments):
    """What a program prints that has a cluster of its own, as (stdout, stderr)."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    code = f"import os, sys\nimport test_cluster as t\nfrom tiprctl.gallery.keeping.store import GalleryStore\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        timeout=120,
    )
    return done.stdout, done.stderr


def embed_and_kill(store, folder, notes):
    """Embed in two processes, of which one is killed at its second batch; how many rows are added, and by which ones."""
    killed = []

    def kill_in_the_middle():
        while not (second := list(notes.glob("*-2"))):
            time.sleep(0.01)
        killed.append(second[0].name.partition("-")[0])
        os.kill(int(killed[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    added = embed(store, folder, model=partial(Colours, notes)).added
    killer.join()
    at_work = {note.name.partition("-")[0] for note in notes.iterdir()}
    return added, killed[0] in at_work, len(at_work) >= 2


def test_a_killed_worker_costs_time_and_no_row_and_the_terminal_stays_quiet(crops, store, tmp_path):
    """Whatever Ray and Lance write, on their way up, at the death of a worker and on their way down."""
    pytest.importorskip("ray")
    notes = tmp_path / "notes"
    notes.mkdir()
    code = "print(t.embed_and_kill(GalleryStore.open(sys.argv[1]), sys.argv[2], t.Path(sys.argv[3])))"
    assert in_a_process(code, store.uri, crops, notes) == ("(24, True, True)\n", "")
    assert paths_of(store.uri) == sorted(str(file) for file in crops.rglob("*.png"))


@pytest.fixture
def s3(monkeypatch):
    """The file system of a real S3 server on this machine with the buckets `crops` and `gallery`."""
    pytest.importorskip("moto.server", reason="needs a server: pip install 'moto[server]'")
    from pyarrow.fs import S3FileSystem

    with free_port() as port, running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        variables = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
        variables |= {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "ALLOW_HTTP": "true"}
        for name, value in variables.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        system = S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True)
        for bucket in ("crops", "gallery"):
            system.create_dir(bucket)
        yield system


@contextmanager
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield port


@contextmanager
def running(command, port):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def test_images_and_gallery_in_an_object_store(s3, crops):
    for file in [*sorted(crops.rglob("*.png")), crops / ".hidden.png"]:
        content = file.read_bytes() if file.exists() else b"x"
        with s3.open_output_stream(f"crops/day/{file.relative_to(crops)}") as stream:
            stream.write(content)
    uri = "s3://crops/day/"
    images = list(list_objects(uri))
    assert [image.path for image in images] == [str(file.relative_to(crops)) for file in sorted(crops.rglob("*.png"))]
    assert images[0].size == (crops / images[0].path).stat().st_size and images[0].mtime_ns > 0
    assert read_image(f"{uri}{images[0].path}") == (crops / images[0].path).read_bytes()

    store = new_store("s3://gallery/people.lance")
    code = (
        "images = list(t.list_objects(sys.argv[2]))\n"
        "images.append(images[0]._replace(path='cam_0/gone.png'))\n"
        "changes = t.embed(GalleryStore.open(sys.argv[1]), sys.argv[2], images)\n"
        "print(changes.added, *((each.path, each.reason) for each in changes.unreadable))"
    )
    unreadable = (f"{uri}cam_0/gone.png", "it was deleted after it had been listed")
    assert in_a_process(code, store.uri, uri) == (f"24 {unreadable}\n", "")
    assert {row["path"] for row in GalleryStore.open(store.uri).dataset.to_table(columns=["path"]).to_pylist()} == {
        f"{uri}{image.path}" for image in images
    }
    rival = GalleryStore.open(store.uri)
    committer, row = Committer(rival), written(rival, "/a", "/b")
    store.put(pa.table({"path": ["/b"], "vector": [[0.0, 1.0, 0.0]]}))
    assert committer.commit([row]).inserted == 1
    assert rival.count() == 26


def test_an_object_store_that_does_not_answer_is_named(s3):
    with pytest.raises(InputError, match="cannot be listed") as caught:
        list(list_objects("s3://absent/crops"))
    assert caught.value.where == "s3://absent/crops"
    with pytest.raises(InputError, match="no such folder"):
        list(list_objects("s3://crops/absent"))
    with pytest.raises(ImageError, match="deleted after"):
        read_image("s3://crops/absent.jpg")


def test_an_object_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"x" * 11)
    monkeypatch.setattr(sources, "_open", lambda location: (LocalFileSystem(), str(tmp_path / "a.png")))
    monkeypatch.setattr(sources, "MAX_BYTES", 11)
    assert read_image("s3://crops/a.png") == b"x" * 11
    monkeypatch.setattr(sources, "MAX_BYTES", 10)
    with pytest.raises(ImageError, match="more than") as caught:
        read_image("s3://crops/a.png")
    assert caught.value.where == "s3://crops/a.png"


def test_an_object_store_of_no_known_kind_is_named():
    with pytest.raises(InputError, match="cannot be opened"):
        list(list_objects("nosuch://bucket/crops"))


@pytest.mark.parametrize(
    ("address", "reason"), [("127.0.0.1:1", "refused"), ("ray://127.0.0.1:1", "refused"), ("head", "HOST:PORT")]
)
def test_a_cluster_that_is_not_there_is_told_at_once(address, reason):
    with pytest.raises(UsageError, match=f"cannot be reached: .*{reason}"):
        cluster_session._start(None, address, 2)
