from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import archives
from engine.data.archives import open_zip, read_npz, read_tar, read_zip_member, zip_members
from engine.errors import ConfigurationError


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.arange(24, dtype=np.uint8).reshape(2, 3, 4), labels=np.array([1, 2]))
    return path


def forged_npz(path: Path, header: bytes, body: bytes = b"") -> Path:
    """Write an npz whose array ``images`` has the given header text."""
    header = header.ljust(118 - 10) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body)
    return path


def test_named_arrays_are_read_and_no_others(npz: Path) -> None:
    content = read_npz(npz, ("images",), ("split", "labels"))
    assert set(content) == {"images", "labels"}
    assert np.array_equal(content["images"], np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


def test_a_missing_array_is_named_with_what_there_is(npz: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.npz: the npz has no array pictures; it holds images, labels"):
        read_npz(npz, ("pictures",))


def test_object_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "o.npz", images=np.array([{}, 1], dtype=object))
    with pytest.raises(ConfigurationError, match="'images' holds Python objects"):
        read_npz(tmp_path / "o.npz", ("images",))


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(100,)", "(-1, -5)", "(4, -1)"])
def test_a_declared_size_beyond_the_data_is_refused_before_it_is_allocated(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    with pytest.raises(ConfigurationError, match="declares"):
        read_npz(forged_npz(tmp_path / "f.npz", header, b"abcd"), ("images",))


def test_the_limit_on_arrays(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ARRAY_BYTES", 20)
    with pytest.raises(ConfigurationError, match="24 bytes"):
        read_npz(npz, ("images",))


@pytest.mark.parametrize("header", [b"{", b"[1]", b"{'descr': 5}", b"__import__('os')", b"(" * 80, b"\xff\xfe"])
def test_broken_headers(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(ConfigurationError, match="array 'images' is damaged"):
        read_npz(forged_npz(tmp_path / "f.npz", header), ("images",))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + bytes(40)])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"x\.npz: not a readable npz file"):
        read_npz(path, ("images",))


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 400), junk=st.binary(max_size=4), skip=st.integers(0, 4))
def test_damaged_npz_files_are_one_line_errors_or_arrays(
    problem: Callable[..., str], tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes, skip: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.arange(24, dtype=np.uint8))
    good = buffer.getvalue()
    path.write_bytes(good[:cut] + junk + good[cut + skip :])
    assert len(problem(read_npz, path, ("images",)).splitlines()) <= 1


def write_zip(path: Path, names: list[str], content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return path


def test_zip_members_are_sorted_and_filtered(tmp_path: Path) -> None:
    with open_zip(write_zip(tmp_path / "a.zip", ["b/2.png", "a/1.png", "a/readme.txt"])) as archive:
        members = zip_members(archive, ".png")
        assert [member.filename for member in members] == ["a/1.png", "b/2.png"]
        assert read_zip_member(archive, members[0]).read() == b"x"


@pytest.mark.parametrize("name", ["/etc/passwd.png", "../up.png", "a/../../b.png", "a\\..\\..\\b.png"])
def test_names_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    with (
        open_zip(write_zip(tmp_path / "a.zip", ["ok.png", name])) as archive,
        pytest.raises(ConfigurationError, match="points outside the archive"),
    ):
        zip_members(archive, ".png")


def test_zip_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_zip(write_zip(tmp_path / "a.zip", ["1.png", "2.png", "3.png"], bytes(1000))) as archive:
        for name, value in (("MAX_MEMBER_BYTES", 999), ("MAX_ARCHIVE_BYTES", 2999), ("MAX_MEMBERS", 2)):
            with monkeypatch.context() as patch:
                patch.setattr(archives, name, value)
                with pytest.raises(ConfigurationError, match="refused"):
                    zip_members(archive, ".png")
        assert len(zip_members(archive, ".png")) == 3


def test_a_damaged_zip_member_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", ["1.png"], bytes(range(256)))
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    with open_zip(path) as archive, pytest.raises(ConfigurationError, match=r"member 1\.png is damaged"):
        read_zip_member(archive, zip_members(archive, ".png")[0])


def write_tar(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo("wanted")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return path


def test_tar_members_by_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", {"d/one": b"1", "d/two": b"2", "d/three": b"3"})
    assert read_tar(path, {"one", "three", "four"}) == {"one": b"1", "three": b"3"}


def test_hostile_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="points outside the archive"):
        read_tar(write_tar(tmp_path / "a.tar.gz", {"../one": b"1"}), {"one"})
    assert read_tar(write_tar(tmp_path / "b.tar.gz", {"x": b"1"}, link="/etc/passwd"), {"wanted"}) == {}
    good = write_tar(tmp_path / "c.tar.gz", {"one": bytes(2000)})
    monkeypatch.setattr(archives, "MAX_ARCHIVE_BYTES", 1999)
    with pytest.raises(ConfigurationError, match="unpacks to more than"):
        read_tar(good, {"one"})


@pytest.mark.parametrize("cut", [0, 10, 40, -1500])
def test_truncated_tars(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "a.tar.gz", {"one": np.random.default_rng(0).bytes(3000)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigurationError, match=r"not a readable tar\.gz"):
        read_tar(path, {"one"})
