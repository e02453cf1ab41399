"""Files made to harm: each is refused with a message, without running anything and without allocating
what it promises.
"""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from attack_files import MEBIBYTE, Trap, entry, header, npy, npz, refused, safetensors

from refattn.oracle.vectors.containers import read_arrays, write_arrays
from refattn.oracle.vectors.untrusted import VectorError

# .npz


def test_pickled_objects_are_refused_and_not_unpickled(tmp_path):
    sprung = tmp_path / "sprung"
    payload = io.BytesIO()
    np.lib.format.write_array(payload, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    refused(npz(tmp_path / "a.npz", [("query.npy", payload.getvalue())]), "descr")
    refused(npz(tmp_path / "b.npz", [("query.npy", pickle.dumps(Trap(sprung)))]), "version 1 to 3")
    np.savez(tmp_path / "c.npz", query=np.array([Trap(sprung)], dtype=object))
    refused(tmp_path / "c.npz", "descr")
    assert not sprung.exists()


@pytest.mark.parametrize(
    "text, words",
    [
        (header(descr="__import__('os').system('true')"), "header must give"),
        (header(shape="(" * 300 + ")" * 300), "header must give"),
        (header(shape="(2**40,)"), "header must give"),
        (header(shape="(-1,)"), "header must give"),
        (header(shape="(1 1,)"), "shape must be a tuple of integers"),
        (header(shape="(,)"), "shape must be a tuple of integers"),
        (header(descr="[('a', '<f4')]"), "header must give"),
        (header(descr="'|O'"), "descr"),
        (header(descr="'<c8'"), "descr"),
        (header(descr="'<U9'"), "descr"),
        (header(descr="'|V9'"), "descr"),
        (header(shape="(281474976710655, 281474976710655)"), "must have"),
        (header(shape="(999999999999999,)"), "sizes between"),
        (header(shape="(99999999999999999,)"), "tuple of integers"),
        (header(shape="(" + "1, " * 40 + ")"), "at most 16 sizes"),
        (header(shape="(3,)"), "must have 12 bytes"),
        (header(shape="(0, 4294967296)"), "holds nothing"),
        ("not a header", "header must give"),
        ("", "header must give"),
    ],
)
def test_bad_npy_headers(tmp_path, text, words):
    refused(npz(tmp_path / "a.npz", [("query.npy", npy(text, b"\0" * 8))]), words)


def test_npy_headers_of_false_length(tmp_path):
    refused(
        npz(tmp_path / "a.npz", [("query.npy", b"\x93NUMPY\x02\0" + struct.pack("<I", 2**32 - 1) + b"{}")]),
        "10000 bytes",
    )
    refused(
        npz(tmp_path / "b.npz", [("query.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", 9999) + b"{}")]),
        "too early",
    )
    refused(npz(tmp_path / "c.npz", [("query.npy", b"\x93NUM")]), "too early")
    refused(npz(tmp_path / "d.npz", [("query.npy", npy(header(), b"\0" * 8, version=9))]), "version 1 to 3")


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    count = 200 * MEBIBYTE
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("query.npy", "w") as member,
    ):
        member.write(npy(header("'|u1'", shape=f"({count},)")))
        for _ in range(200):
            member.write(bytes(MEBIBYTE))
    assert (tmp_path / "a.npz").stat().st_size < MEBIBYTE
    refused(tmp_path / "a.npz", "unpack to at most")
    refused(
        tmp_path / "a.npz",
        "at most 1000 bytes|at most 1049576 bytes",
        lambda path: read_arrays(path, largest=1000),
    )


def test_many_small_bombs_count_together(tmp_path):
    data = npy(header("'|u1'", shape=f"({15 * MEBIBYTE},)"), bytes(15 * MEBIBYTE))
    npz(tmp_path / "a.npz", [(f"x{i}.npy", data) for i in range(8)], zipfile.ZIP_DEFLATED)
    refused(tmp_path / "a.npz", "must hold at most", lambda path: read_arrays(path, largest=64 * MEBIBYTE))


def test_a_member_larger_than_the_directory_says(tmp_path):
    path = npz(
        tmp_path / "a.npz", [("query.npy", npy(header(shape="(256,)"), bytes(1024)))], zipfile.ZIP_DEFLATED
    )
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    struct.pack_into("<L", data, at + 24, 150)  # the uncompressed size in the directory
    path.write_bytes(data)
    refused(path, "must have 1024 bytes|CRC")


def test_changed_bytes_fail_the_checksum(tmp_path):
    path = npz(tmp_path / "a.npz", [("query.npy", npy(header(), b"\1\2\3\4\5\6\7\x08"))])
    data = bytearray(path.read_bytes())
    data[data.index(b"\1\2\3\4\5")] ^= 255
    path.write_bytes(data)
    refused(path, "CRC")


@pytest.mark.parametrize(
    "name",
    [
        "../evil.npy",
        "/etc/passwd.npy",
        "a/b.npy",
        "..npy",
        "query",
        "query.npy\0.txt",
        "C:\\x.npy",
        "nul.npy",
        "",
        "é.npy",
        "x" * 200 + ".npy",
    ],
)
def test_member_names_that_are_paths(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        info = zipfile.ZipInfo("placeholder.npy")
        info.filename = name
        archive.writestr(info, npy(header(), bytes(8)))
    refused(tmp_path / "a.npz", "must be named like|damaged")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members(tmp_path):
    refused(
        npz(
            tmp_path / "a.npz",
            [("query.npy", npy(header(), bytes(8))), ("query.npy", npy(header(), b"\1" * 8))],
        ),
        "twice",
    )


def test_more_members_than_any_case_has(tmp_path):
    refused(npz(tmp_path / "a.npz", [(f"x{i}.npy", b"") for i in range(2000)]), "at most 256 arrays")


def test_a_false_count_of_members_or_a_zip64_directory(tmp_path):
    path = npz(tmp_path / "a.npz", [(f"x{i}.npy", npy(header(), bytes(8))) for i in range(400)])
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x05\x06")
    struct.pack_into("<HH", data, at + 8, 1, 1)
    path.write_bytes(data)
    refused(path, "at most 256 arrays")
    locator = b"PK\x06\x07" + bytes(16)
    path.write_bytes(data[:at] + locator + data[at:])
    refused(path, "at most 256 arrays")


def test_encrypted_and_oddly_compressed_members(tmp_path):
    for offset, value, words in (
        (8, 1, "encrypted"),
        (10, 12, "stored or deflated"),
        (10, 14, "stored or deflated"),
    ):
        path = npz(tmp_path / "a.npz", [("query.npy", npy(header(), bytes(8)))])
        data = bytearray(path.read_bytes())
        struct.pack_into("<H", data, data.rfind(b"PK\x01\x02") + offset, value)
        path.write_bytes(data)
        refused(path, words)


@pytest.mark.parametrize("container", ["npz", "safetensors"])
def test_truncated_at_every_length(tmp_path, container):
    whole = tmp_path / f"whole.{container}"
    write_arrays(whole, {"query": np.arange(6, dtype=np.float32), "mask": np.ones(3, bool)}, '{"a": 1}')
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{container}"
    for length in range(0, len(data), 7):
        cut.write_bytes(data[:length])
        with pytest.raises(VectorError):
            read_arrays(cut)


@pytest.mark.parametrize("container", ["npz", "safetensors"])
def test_random_damage_is_an_error_or_other_numbers_never_a_crash(tmp_path, container):
    whole = tmp_path / f"whole.{container}"
    write_arrays(whole, {"query": np.arange(6, dtype=np.float32), "mask": np.ones(3, bool)}, '{"a": 1}')
    data, rng = whole.read_bytes(), np.random.default_rng(0)
    damaged = tmp_path / f"damaged.{container}"
    for _ in range(400):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            changed[at] = rng.integers(256)
        damaged.write_bytes(changed)
        try:
            arrays, _ = read_arrays(damaged)
        except VectorError:
            continue
        assert sum(array.nbytes for array in arrays.values()) <= len(data)


def test_a_polyglot_is_read_as_what_its_name_says(tmp_path):
    write_arrays(tmp_path / "a.safetensors", {"query": np.ones(2, np.float32)}, "")
    both = tmp_path / "both.npz"
    both.write_bytes((tmp_path / "a.safetensors").read_bytes())
    refused(both, "must be a zip file")


# .safetensors


@pytest.mark.parametrize(
    "head, data, words",
    [
        (
            {"q": entry(shape=(2**40, 2**20), offsets=(0, 2**62))},
            b"\0" * 8,
            "must have|sizes between|must hold",
        ),
        (
            {"q": entry(shape=(2**24,), offsets=(0, 2**26))},
            b"\0" * 8,
            "must have 67108864 bytes after the header",
        ),
        ({"q": entry(shape=(3,))}, b"\0" * 8, "must have 12 bytes"),
        ({"q": entry(shape=(-2,))}, b"\0" * 8, "sizes between"),
        ({"q": entry(shape=(2.0,))}, b"\0" * 8, "sizes between"),
        ({"q": entry(shape=(True, 2))}, b"\0" * 8, "sizes between"),
        ({"q": entry(shape=(0, 2**40), offsets=(0, 0))}, b"", "holds nothing"),
        ({"q": entry(dtype="O")}, b"\0" * 8, "dtype"),
        ({"q": entry(dtype=["F32"])}, b"\0" * 8, "dtype"),
        ({"q": entry(dtype="F8_E8M0", shape=(8,))}, b"\0" * 8, "dtype"),
        ({"q": entry(offsets=(8, 0))}, b"\0" * 8, "data_offsets"),
        ({"q": entry(offsets=(-8, 0))}, b"\0" * 8, "two integers"),
        ({"q": entry(offsets=(0.0, 8))}, b"\0" * 8, "two integers"),
        ({"q": entry(offsets=(4, 12))}, b"\0" * 12, "without gap or overlap"),
        ({"q": entry(), "k": entry(offsets=(4, 12))}, b"\0" * 12, "without gap or overlap"),
        ({"q": entry(), "k": entry()}, b"\0" * 8, "without gap or overlap"),
        ({"q": entry()}, b"\0" * 16, "must have 8 bytes after the header"),
        ({"q": entry() | {"more": 1}}, b"\0" * 8, "must have dtype, shape and data_offsets"),
        ({"q": [1]}, b"\0" * 8, "must have dtype, shape and data_offsets"),
        ({"../q": entry()}, b"\0" * 8, "array names"),
        ({"__metadata__": {"a": 1}, "q": entry()}, b"\0" * 8, "words to words"),
        ([1, 2], b"", "JSON object"),
        ({f"x{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(1000)}, b"", "at most 256 arrays"),
        (b'{"q": {}, "q": {}}', b"", "twice"),
        (b'{"q": NaN}', b"", "got the number NaN"),
        (b'{"q": ' + b"9" * 5000 + b"}", b"", "5000 digits"),
        (b"[" * 100_000, b"", "must be JSON"),
        (b'{"a":' * 50_000, b"", "must be JSON"),
        (b"\xff\xfe", b"", "damaged"),
        (b"not json", b"", "must be JSON"),
    ],
)
def test_bad_safetensors_headers(tmp_path, head, data, words):
    refused(safetensors(tmp_path / "a.safetensors", head, data), words)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 100])
def test_safetensors_headers_of_false_length(tmp_path, length):
    refused(
        safetensors(tmp_path / "a.safetensors", {"q": entry()}, b"\0" * 8, length=length),
        "header must have at most|too early|damaged",
    )


def test_booleans_other_than_0_and_1(tmp_path):
    refused(
        safetensors(tmp_path / "a.safetensors", {"mask": entry("BOOL", (2,), (0, 2))}, b"\1\2"), "booleans"
    )
