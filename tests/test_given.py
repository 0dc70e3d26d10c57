"""Volumes, URLs, a token and certificates as the user gives them. test_kubevirt_pull.py pulls from such URLs."""

import pytest

from nbdpull.core import errors
from nbdpull.kubevirt import given
from nbdpull.kubevirt.given import Machine


@pytest.mark.parametrize("text, found", [
    ("kubevirt:ns/vm", Machine("ns", "vm")),
    ("kubevirt:n-1/vm.2", Machine("n-1", "vm.2")),
    ("kubevirt:vm", None), ("kubevirt:ns/", None), ("kubevirt:/vm", None), ("kubevirt:ns/a/b", None), ("ns/vm", None),
    ("kubevirt:NS/vm", None), ("kubevirt:ns/-vm", None), ("kubevirt:ns/vm\n", None), ("kubevirt:ns/..", None),
    ("kubevirt:ns/" + "v" * 253, Machine("ns", "v" * 253)), ("kubevirt:ns/" + "v" * 254, None),
])  # fmt: skip
def test_a_machine(text, found):
    if found:
        assert given.machine(text) == found
    else:
        with pytest.raises(errors.UsageError, match="write kubevirt:NAMESPACE/VM"):
            given.machine(text)


@pytest.mark.parametrize("maps, datas, names, says", [
    (["https://h/m"], [], [], "does not name the volume: write VOLUME=URL"),
    (["nothing"], [], [], "give a URL, or VOLUME=URL"),
    (["=https://h/m"], [], [], "give a URL, or VOLUME=URL"),
    (["https://h/{volume}/map"], [], [], "name the volumes that {volume} stands for with --disk"),
    (["a=https://h/map", "a=https://g/map"], [], [], "--http-map has two URLs for volume a"),
    (["a=https://h/map"], ["b=https://h/data"], [], "--http-data has no URL for volume a"),
    (["a=https://h/map"], ["a=https://h/data", "b=https://h/data"], [], "--http-map has no URL for volume b"),
    (["a=https://h/m"], [], [], "--http-data is missing"),
    (["a=ftp://h/map"], [], [], "is not an http or https URL"),
    (["a=https:///map"], [], [], "is not an http or https URL"),
    (["a=https://h:0x/map"], [], [], "is not an http or https URL"),
    (["a=https://h/map#x"], [], [], "is not an http or https URL"),
    (["a=https://h/a map"], [], [], "is not an http or https URL"),
    (["a=https://[::1/map"], [], [], "is not an http or https URL"),
    (["https://[::1/exports/a/map"], [], [], "is not an http or https URL"),
    (["https://[::1/{volume}/map"], [], ["a"], "is not an http or https URL"),
    (["a=https://me:pw@h/map"], [], [], "a URL with a secret in it shows in the process list"),
    (["a=https://h/map?X-KubeVirt-Export-Token=x"], [], [], "a URL with a secret in it shows in the process list"),
])  # fmt: skip
def test_urls_that_are_refused(maps, datas, names, says):
    with pytest.raises(errors.UsageError) as caught:
        given.access(maps, datas, names, None)
    assert says in str(caught.value) and "pw" not in str(caught.value)


def test_who_could_listen():
    maps = ["a=HTTPS://h/map", "b=HTTP://far/map", "c=http://near/map", "d=http://[::1]/map"]
    found = given.access(maps, [], [], None)
    assert given.unencrypted(found) == [f"the token and the disks go to {host} unencrypted (http)" for host in
                                        ("far", "near")]  # fmt: skip


@pytest.mark.parametrize("content, says", [
    (b"", "has no token: one line of printable ASCII"), (b"a\nb", "has no token"), (b"a b", "has no token"),
    ("é".encode(), "has no token"), (b"x" * 4097, "has no token"), (b"x" * (given.MAX_FILE + 1), "is larger than"),
])  # fmt: skip
def test_a_file_without_a_token(tmp_path, content, says):
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(errors.UsageError) as caught:
        given.token(str(tmp_path / "token"))
    assert says in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    for call, option in ((given.token, "--token-file"), (given.certificates, "--ca")):
        with pytest.raises(errors.UsageError, match=f"{option} .*none cannot be read: No such file or directory"):
            call(str(tmp_path / "none"))
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(errors.UsageError, match="has no certificates"):  # it would stand for those of the system
        given.certificates(str(tmp_path / "empty"))
    assert given.certificates(None) is None


def test_volumes_to_pull():
    assert given.wanted(["b", "a", "c"], [], ["a"]) == ["b", "c"]
    assert given.wanted(["b", "a", "c"], ["c", "b"], []) == ["b", "c"]
    assert given.wanted(["b"], [], ["cloud-init"], absent=["cloud-init"]) == ["b"]
    for names, exclude in ((["x"], []), ([], ["x"])):
        with pytest.raises(errors.NoSuchDisk, match="the backup has no volume x; it has: b, a"):
            given.wanted(["b", "a"], names, exclude)
    with pytest.raises(errors.NothingToBackUp):
        given.wanted(["b"], [], ["b"])
