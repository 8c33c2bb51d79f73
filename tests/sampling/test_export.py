from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calotype.core.files import check_own
from calotype.core.images import grid
from calotype.core.model import ImageSpec
from calotype.core.outputs import MANIFEST
from calotype.errors import PlaceError, RunError
from calotype.sampling import sampler
from calotype.sampling.sampler import cycle
from calotype.sampling.writers import Job, parts_folder, to_folder, write_grid, write_npz
from tests.sampling.test_sampling import Recorder

N = 40  # in three calls of 16


def make_job(channels: int = 3, n: int = N, seed: int = 7, first: int = 0, classes: int = 0, **facts: object) -> Job:
    model = Recorder(ImageSpec(channels, 4, 6, classes))
    labels = cycle([1, 0]) if classes else None
    return Job(model, n, seed, first, labels, None, {"weights_sha256": "0", **facts})


def expected(job: Job) -> torch.Tensor:
    return sampler.sample(make_job(job.model.spec.channels).model, job.indices, job.seed)


def silent(done: int, total: int) -> None:
    return None


def read(folder: Path) -> torch.Tensor:
    arrays = [np.atleast_3d(np.array(Image.open(path))) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_folder_of_pngs(tmp_path: Path, channels: int) -> None:
    job, seen = make_job(channels), list[tuple[int, int]]()
    done = to_folder(job, tmp_path / "new" / "er", lambda done, total: seen.append((done, total)))
    assert (done.drawn, done.kept) == (N, 0)
    assert seen == [(0, N), (16, N), (32, N), (40, N)]
    assert sorted(path.name for path in (tmp_path / "new" / "er").iterdir()) == [
        *(f"{k:06d}.png" for k in range(N)),
        MANIFEST,
    ]
    assert torch.equal(read(tmp_path / "new" / "er"), expected(job))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_grid(tmp_path: Path, channels: int) -> None:
    job = make_job(channels)
    to_folder(job, tmp_path / "parts", silent)
    write_grid(job, tmp_path / "parts", tmp_path / "grid.png")
    pixels = np.atleast_3d(np.array(Image.open(tmp_path / "grid.png")))
    assert torch.equal(torch.from_numpy(pixels).permute(2, 0, 1), grid(expected(job)))


def test_an_npz(tmp_path: Path) -> None:
    job = make_job()
    to_folder(job, tmp_path / "parts", silent)
    write_npz(job, tmp_path / "parts", tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz", allow_pickle=False) as arrays:
        assert list(arrays) == ["images"]
        assert arrays["images"].dtype == np.uint8
        assert torch.equal(torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2), expected(job))


def test_an_npz_has_the_labels(tmp_path: Path) -> None:
    job = make_job(n=5, first=3, classes=2)
    to_folder(job, tmp_path / "parts", silent)
    write_npz(job, tmp_path / "parts", tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz", allow_pickle=False) as arrays:
        assert arrays["labels"].dtype == np.int64
        assert arrays["labels"].tolist() == [0, 1, 0, 1, 0]  # of images 3, 4, 5, 6, 7


class Stop(Exception):
    pass


@pytest.mark.fault("sampling that is interrupted", "the same command draws what is missing, the same images")
def test_an_interrupted_job_continues(tmp_path: Path) -> None:
    job = make_job()

    def stop(done: int, total: int) -> None:
        if done >= 16:
            raise Stop

    with pytest.raises(Stop):
        to_folder(job, tmp_path / "out", stop)
    assert len(list((tmp_path / "out").glob("*.png"))) == 16
    again = make_job()
    seen: list[int] = []
    done = to_folder(again, tmp_path / "out", lambda done, total: seen.append(done))
    assert (done.drawn, done.kept) == (24, 16)
    assert seen == [16, 32, 40]
    assert again.model.calls == [16, 16]  # type: ignore[attr-defined]
    assert torch.equal(read(tmp_path / "out"), expected(job))


def test_missing_files_are_drawn_again_and_others_kept(tmp_path: Path) -> None:
    job = make_job()
    to_folder(job, tmp_path / "out", silent)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    gone = [f"{k:06d}.png" for k in (0, 17, 39)]
    for name in gone:
        (tmp_path / "out" / name).unlink()
    done = to_folder(make_job(), tmp_path / "out", silent)
    assert (done.drawn, done.kept) == (3, 37)
    assert torch.equal(read(tmp_path / "out"), expected(job))
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert {name for name in before if before[name] != after[name]} == set(gone)


def test_a_finished_job_draws_nothing(tmp_path: Path) -> None:
    to_folder(make_job(), tmp_path, silent)
    job = make_job()
    assert to_folder(job, tmp_path, silent)[:2] == (0, N)
    assert job.model.calls == []  # type: ignore[attr-defined]


def test_more_images_of_the_same_settings_join_those_there(tmp_path: Path) -> None:
    to_folder(make_job(n=3), tmp_path, silent)
    done = to_folder(make_job(n=4, first=2), tmp_path, silent)
    assert (done.drawn, done.kept) == (3, 1)
    assert torch.equal(read(tmp_path), expected(make_job(n=6)))


@pytest.mark.parametrize("other", [{"seed": 8}, {"weights_sha256": "1"}, {"labels": ["a"]}])
def test_other_settings_are_refused(tmp_path: Path, other: dict[str, object]) -> None:
    to_folder(make_job(n=3), tmp_path, silent)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunError, match=r"holds pictures of `calotype sample`.* choose another --out, or remove"):
        to_folder(make_job(n=3, **other), tmp_path, silent)  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_manifest_of_a_version_that_named_no_run_is_continued(tmp_path: Path) -> None:
    to_folder(make_job(n=3), tmp_path, silent)
    (tmp_path / MANIFEST).write_text('{"seed": 7, "weights_sha256": "0"}')
    job = make_job(n=4)._replace(told={"run": "photos", "checkpoint": 64})
    assert to_folder(job, tmp_path, silent)[:2] == (1, 3)


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_text("mine")
    with pytest.raises(RunError, match=r"is not empty and has no samples\.json"):
        to_folder(make_job(), tmp_path, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


def test_a_manifest_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(RunError, match="cannot be used for pictures"):
        to_folder(make_job(), tmp_path, silent)


def test_the_manifest_says_what_decides_the_images(tmp_path: Path) -> None:
    to_folder(make_job(n=1, options={"steps": 3}), tmp_path, silent)
    expected = {"command": "sample", "seed": 7, "weights_sha256": "0", "options": {"steps": 3}}
    assert json.loads((tmp_path / MANIFEST).read_text()) == expected


def test_a_place_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="choose another --out"):
            to_folder(make_job(), place, silent)


def test_a_folder_that_goes_away_while_drawing(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def remove(done: int, total: int) -> None:
        (folder / MANIFEST).unlink()
        folder.rmdir()

    with pytest.raises(RunError, match="finished images are kept, repeat to continue"):
        to_folder(make_job(), folder, remove)


@pytest.mark.parametrize("write", [write_grid, write_npz])
def test_a_file_that_cannot_be_written_keeps_the_images(
    tmp_path: Path, write: Callable[[Job, Path, Path], None]
) -> None:
    job = make_job(n=3)
    to_folder(job, tmp_path / "parts", silent)
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "taken", tmp_path / "nowhere" / "file"):
        with pytest.raises(RunError, match=r"cannot be written .*parts"):
            write(job, tmp_path / "parts", path)
    assert len(list((tmp_path / "parts").glob("*.png"))) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "taken"]


def test_the_parts_of_a_file_lie_beside_it_apart_by_settings(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    folders = [parts_folder(make_job(seed=seed), path) for seed in (7, 7, 8)]
    assert folders[0] == folders[1] != folders[2]
    assert {folder.parent for folder in folders} == {tmp_path}
    assert all(folder.name.startswith(".grid.png.") for folder in folders)


def test_parts_of_another_user_are_not_taken(tmp_path: Path) -> None:
    folder = parts_folder(make_job(), tmp_path / "grid.png")
    check_own(folder)
    folder.mkdir()
    check_own(folder)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to("elsewhere")
    with pytest.raises(PlaceError, match="not of this user's making"):
        check_own(folder)
    if os.geteuid() == 0:
        folder.unlink()
        folder.mkdir()
        os.chown(folder, 65534, 65534)
        with pytest.raises(PlaceError, match="not of this user's making"):
            check_own(folder)
