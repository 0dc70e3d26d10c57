"""Key files of a sealed store: who opens it, who is let in and shut out, and that no other master key is ever taken."""

import contextlib
import grp
import hashlib
import json
import os
import stat

import pytest
from identities import data, path, recipient

from nbdpull.core import errors
from nbdpull.crypto import age, identity_files, keys
from nbdpull.format import findings, layout
from nbdpull.repository import key_changes, key_files, keyring, marker, series_choice

AGE1, AGE2, SSH = recipient("age1"), recipient("age2"), recipient("ed25519")


def identities(*names):
    return identity_files.given([path(name) for name in names])


def made(root, *words, passphrase=None, **options):
    return marker.open_or_create(str(root), seal=key_changes.new(words, passphrase), **options)


@pytest.fixture
def store(tmp_path):
    return made(tmp_path / "store", AGE1, SSH)


def key_path(store, number=0, end=".age"):
    return f"{layout.KEYS}/{key_files.listed(store)[number].name}{end}"


def replaced(store, where, new):
    """Put other bytes into a file of a store, as a thief does."""
    with open(store.path(where), "wb") as file:
        file.write(new)


# -- who opens it -----------------------------------------------------------------------------------------------------


def test_each_recipient_opens_it_and_nobody_else(store):
    one, other = (keyring.open_master(store, identities(name)) for name in ("age1", "ed25519"))
    assert one.master == other.master and one.key_file != other.key_file
    assert keyring.keys_of(store, identities("age1")) == keys.of_master(one.master)
    assert repr(one) == f"<the master key by <age identity of {path('age1')}>>"
    assert keys.of_master(one.master).id == marker.master_of(store)
    with pytest.raises(errors.KeyNeeded) as caught:
        keyring.keys_of(store, identities("age2", "passphrase"))
    told, names = str(caught.value), [each.name for each in key_files.listed(store)]
    assert told.startswith(
        f"{store.root} does not open for {path('age2')} (an age key), {path('passphrase')} (a passph"
    )
    assert "backup@host)" in told and all(name in told for name in names)


def test_without_an_identity_it_says_how_to_name_one(store):
    with pytest.raises(
        errors.KeyNeeded, match=r"store is sealed: name an identity .* --identity FILE, or NBDPULL_IDEN"
    ):
        keyring.keys_of(store, [])


def test_a_store_that_is_not_sealed_needs_none(tmp_path):
    store = marker.open_or_create(str(tmp_path / "plain"))
    assert marker.master_of(store) is None
    assert store.folders() == []
    for call in (key_files.listed, lambda found: keyring.keys_of(found, identities("age1"))):
        with pytest.raises(errors.StoreError, match="plain: the store is not sealed"):
            call(store)


def test_the_master_key_itself_opens_it_without_any_key_file(store, tmp_path):
    opened = keyring.open_master(store, identities("age1"))
    (tmp_path / "paper").write_text(keys.text_of(opened.master) + "\n")
    store.remove_folder(layout.KEYS)
    again = keyring.open_master(store, identity_files.given([str(tmp_path / "paper")]))
    assert (again.master, again.key_file) == (opened.master, None)
    with pytest.raises(errors.Damaged, match="no key file that can be read is there; bring them back"):
        keyring.keys_of(store, identities("age1"))
    key_changes.add(store, again, [AGE2], None, "")
    assert keyring.open_master(store, identities("age2")).master == opened.master


def test_another_master_key_is_refused(store, tmp_path):
    (tmp_path / "paper").write_text(keys.text_of(bytes(32)))
    with pytest.raises(errors.Damaged, match=r"paper: does not hold the master key of this store"):
        keyring.keys_of(store, identity_files.given([str(tmp_path / "paper")]))


@pytest.mark.e2e  # as test_age: scrypt takes a second each time
def test_a_passphrase_opens_it(tmp_path):
    store = made(tmp_path / "store", passphrase=b"correct horse")
    [key] = key_files.listed(store)
    assert (key.by_passphrase, key.recipient) == (True, None) and "passphrase" in key.whose
    assert keyring.open_master(store, identities("age1", "passphrase")).key_file == key.name


# -- where they are ---------------------------------------------------------------------------------------------------


def test_the_folder_is_that_of_no_domain(store):
    assert layout.domain_name(layout.KEYS) is None
    assert series_choice.all_series(store) == []
    for name in (layout.KEYS, "keys", "%40keys"):
        assert layout.folder_name(name) != layout.KEYS


def test_the_files_are_those_of_the_format_and_only_their_owner_reads_them(store):
    names = os.listdir(store.path(layout.KEYS))
    assert sorted(names) == sorted(f"{each.name}{end}" for each in key_files.listed(store) for end in (".age", ".json"))
    modes = {stat.S_IMODE(os.stat(store.path(layout.KEYS, name)).st_mode) for name in names}
    assert modes == {0o600} and stat.S_IMODE(os.stat(store.path(layout.KEYS)).st_mode) == 0o700
    told = json.loads(store.read(key_path(store, 0, ".json")))
    assert set(told) == {"format", "requires", "when", "who", "recipient", "label", "sha256", "mac", "digest"}
    document = json.loads(store.read(layout.MARKER))
    assert document["requires"] == ["sealed"]
    assert document["sealed"] == {"cipher": "XAES-256-GCM", "key": marker.master_of(store)}


@pytest.mark.parametrize("group, folder, file", [(None, 0o700, 0o600), ("mine", 0o750, 0o640)])
def test_who_may_read_key_files_is_who_may_read_the_store(tmp_path, group, folder, file):
    """Whatever the umask."""
    before = os.umask(0)
    try:
        store = made(tmp_path / "store", AGE1, group=group and grp.getgrgid(os.getgid()).gr_name)
        key_changes.add(store, keyring.open_master(store, identities("age1")), [AGE2], None, "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(store.path(layout.KEYS)).st_mode) == folder
    names = os.listdir(store.path(layout.KEYS))
    assert {stat.S_IMODE(os.stat(store.path(layout.KEYS, name)).st_mode) for name in names} == {file} and len(
        names
    ) == 4


def test_what_its_owner_should_know(store, tmp_path):
    assert key_files.warnings(store) == [] == key_files.warnings(marker.open_or_create(str(tmp_path / "plain")))
    one, other = key_files.listed(store)
    key_changes.remove(store, [one.name])
    assert [text[: text.index(":")] for text in key_files.warnings(store)] == [f"only {other.whose} opens {store.root}"]
    replaced(store, key_path(store), b"damaged")
    assert [text.partition(": ")[2][:37] for text in key_files.warnings(store)] == [
        "no key file that can be read is there"
    ]
    store.remove_folder(layout.KEYS)
    assert [text.partition(": ")[2][:37] for text in key_files.warnings(store)] == [
        "no key file that can be read is there"
    ]


def test_no_file_of_the_store_has_the_master_key(store):
    master = keyring.open_master(store, identities("age1")).master
    for folder, _, names in os.walk(store.root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                found = file.read()
            assert master not in found and master.hex().encode() not in found


def test_one_that_died_before_the_marker_can_be_made_again(tmp_path):
    root = tmp_path / "store"
    (root / layout.KEYS).mkdir(parents=True)
    [left] = [each for each in key_changes.new([AGE1], None).files if each[0].endswith(".age")]
    (root / left[0]).write_bytes(left[1])
    with pytest.raises(errors.StoreError, match="is not empty"):
        marker.open_or_create(str(root))
    store = made(root, AGE1)
    assert keyring.keys_of(store, identities("age1")).id == marker.master_of(store), (
        "the one of another key is no hindrance"
    )


def test_what_dead_runs_left_is_gone_when_the_marker_is_there(tmp_path):
    """It would look as if somebody opened the store by it."""
    root = tmp_path / "store"
    (root / layout.KEYS).mkdir(parents=True)
    for where, wrapped in key_changes.new([AGE1, SSH], None).files:
        (root / where).write_bytes(wrapped)
    store = made(root, AGE1)
    assert [each.recipient for each in key_files.listed(store)] == [AGE1] and len(store.files(layout.KEYS)) == 2


def test_of_two_that_make_a_store_at_once_one_leaves_its_keys(tmp_path, monkeypatch):
    root, real = tmp_path / "store", marker.put_keys

    def put(store, files):
        monkeypatch.setattr(marker, "put_keys", real)
        real(store, files)
        made(root, AGE2)

    monkeypatch.setattr(marker, "put_keys", put)
    store = made(root, AGE1)
    assert [each.recipient for each in key_files.listed(store)] == [AGE2]
    assert keyring.keys_of(store, identities("age2")).id == marker.master_of(store)


# -- forged, swapped, damaged -----------------------------------------------------------------------------------------


def forged(words=(AGE1,)):
    """A key file of a thief, who knows the master key in it, for the recipients of a store: they are public."""
    return next(data for name, data in key_changes.new(words, None).files if name.endswith(".age"))


def test_a_forged_key_file_is_refused_by_its_id(store):
    for number in (0, 1):
        replaced(store, key_path(store, number), forged())
    with pytest.raises(
        errors.Damaged, match=rf"{layout.KEYS}/\w+\.age: does not hold the master key .*swapped or forged"
    ):
        keyring.keys_of(store, identities("age1"))


def test_an_identity_that_says_which_master_key_it_is_for(store, tmp_path):
    """Of a store without points, all else can be replaced."""
    mine, other = marker.master_of(store), made(tmp_path / "other", AGE1)
    (tmp_path / "key").write_text(f"# nbdpull: only for master key {mine}\n{data('age1').decode()}")
    tried = identity_files.given([str(tmp_path / "key")])
    assert keyring.keys_of(store, tried).id == mine
    with pytest.raises(
        errors.Damaged, match=rf"other is sealed with master key \w+, and .*key says .* only for {mine}:"
    ):
        keyring.keys_of(other, tried)
    assert keyring.keys_of(other, identities("age1")).id == marker.master_of(other)


def test_beside_a_good_one_it_does_no_harm(store):
    for number in range(1, 5):
        store.publish(f"{layout.KEYS}/{number}0000000.age", forged())
    store.publish(f"{layout.KEYS}/00000000.age", age.wrap(b"x" * 31, [AGE1]))
    store.publish(f"{layout.KEYS}/0fffffff.age", b"nothing")
    wanted = marker.master_of(store)
    assert all(keyring.keys_of(store, identities(name)).id == wanted for name in ("age1", "ed25519"))


def test_what_it_holds_is_no_key(store):
    for number in (0, 1):
        replaced(store, key_path(store, number), age.wrap(b"x" * 31, [AGE1]))
    with pytest.raises(errors.Damaged, match=r"\.age: does not hold the master key of this store"):
        keyring.keys_of(store, identities("age1"))


@pytest.mark.parametrize("new", [b"", b"\0" * 300, b"age-encryption.org/v1\n", b"x" * (age.MAX_FILE + 1)])
def test_damaged_ones_are_named(store, new):
    for where in [key_path(store, number) for number in (0, 1)]:
        replaced(store, where, new)
    with pytest.raises(errors.Damaged, match=r"@keys/\w+\.age: (not a file of age|the file has more than)"):
        keyring.keys_of(store, identities("age1"))
    assert len(key_files.listed(store)) == 2


def test_a_changed_byte_anywhere_in_a_key_file_opens_nothing_else(store):
    mine = [number for number, each in enumerate(key_files.listed(store)) if each.recipient == AGE1]
    where = key_path(store, *mine)
    whole, wanted = store.read(where), marker.master_of(store)
    for at in range(0, len(whole), 3):
        replaced(store, where, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((errors.KeyNeeded, errors.Damaged)):
            keyring.keys_of(store, identities("age1"))
    assert keyring.keys_of(store, identities("ed25519")).id == wanted


@pytest.mark.parametrize("new", [b"", b"{}", b"x" * (1 << 17), layout.seal({"format": layout.FORMAT, "when": 1})])
def test_a_note_that_cannot_be_read_hinders_nothing(store, new):
    for where in [key_path(store, number, ".json") for number in (0, 1)]:
        replaced(store, where, new)
    assert {each.recipient for each in key_files.listed(store)} == {None}
    assert keyring.keys_of(store, identities("age1"))


@pytest.mark.parametrize(
    "change",
    [
        {"sealed": {"cipher": "ROT13", "key": "0" * 32}},
        {"sealed": {"cipher": "XAES-256-GCM", "key": "0" * 31}},
        {"sealed": {"cipher": "XAES-256-GCM"}},
        {"sealed": True},
        {"requires": []},
    ],
)
def test_a_marker_that_is_none(store, change):
    document = json.loads(store.read(layout.MARKER))
    del document["digest"]
    replaced(store, layout.MARKER, layout.seal({**document, **change}))
    with pytest.raises(errors.Damaged, match=r"nbdpull\.json: not the marker of a store"):
        marker.open_store(store.root)


def test_a_marker_from_which_the_seal_was_taken_is_none(store):
    document = json.loads(store.read(layout.MARKER))
    del document["digest"], document["sealed"]
    replaced(store, layout.MARKER, layout.seal(document))
    with pytest.raises(errors.Damaged, match="not the marker of a store"):
        marker.open_store(store.root)


def exchanged(store, ends, resealed=False):
    """Put the files of two keys into the places of each other."""
    one, other = (f"{layout.KEYS}/{each.name}" for each in key_files.listed(store))
    for end in ends:
        first, second = store.read(one + end), store.read(other + end)
        replaced(store, one + end, second)
        replaced(store, other + end, first)
    if resealed:
        for where in (one, other):
            note = json.loads(store.read(where + ".json"))
            del note["digest"]
            note["sha256"] = hashlib.sha256(store.read(where + ".age")).hexdigest()
            replaced(store, where + ".json", layout.seal({**note, "mac": note.pop("mac")}))


def test_a_note_counts_for_the_file_only_that_it_is_about(store):
    before = {each.recipient: each.name for each in key_files.listed(store)}
    exchanged(store, (".age",))
    assert [(each.recipient, each.label, each.when) for each in key_files.listed(store)] == [(None, "", "")] * 2
    with pytest.raises(errors.UsageError, match="is none of its keys"):
        key_files.found(store, AGE1)
    exchanged(store, (".json",))
    assert {each.recipient for each in key_files.listed(store)} == set(before), "a name proves nothing, and matters not"


def test_a_note_that_was_written_without_the_master_key(store):
    opened = keyring.open_master(store, identities("age1"))
    for each in key_files.listed(store):
        key_changes.require_true(store, opened, each)
    exchanged(store, (".age",), resealed=True)
    for each in key_files.listed(store):
        assert each.recipient
        with pytest.raises(
            errors.Damaged, match=rf"{each.name}\.json: not made with the key of this store: .* --force"
        ):
            key_changes.require_true(store, opened, each)
        note = json.loads(store.read(f"{layout.KEYS}/{each.name}.json"))
        del note["mac"], note["digest"]
        replaced(store, f"{layout.KEYS}/{each.name}.json", layout.seal({**note, "when": "", "who": ""}))
        with pytest.raises(errors.Damaged, match="not made with the key"):
            key_changes.require_true(store, opened, key_files.found(store, each.recipient))
    store.remove_file(key_path(store, 0, ".json"))
    key_changes.require_true(store, opened, next(each for each in key_files.listed(store) if not each.recipient))


# -- more, and fewer --------------------------------------------------------------------------------------------------


def test_another_is_let_in_by_one_who_can_open_it(store):
    opened = keyring.open_master(store, identities("ed25519"))
    [name] = key_changes.add(store, opened, [AGE2], None, "safe")
    assert keyring.open_master(store, identities("age2")) == (opened.master, *identities("age2"), name)
    assert [(each.recipient, each.label) for each in key_files.listed(store) if each.name == name] == [(AGE2, "safe")]
    with pytest.raises(errors.UsageError, match="opens the store already"):
        key_changes.add(store, opened, [AGE2], None, "")


def test_a_forged_note_lets_nobody_in_and_shuts_nobody_out(store):
    about = {"format": layout.FORMAT, "requires": [], **findings.now(), "recipient": AGE2, "label": ""}
    for name, wrapped in (("00000000", b"junk"), ("00000001", forged((AGE2,)))):
        note = {**about, "sha256": hashlib.sha256(wrapped).hexdigest()}
        store.publish(f"{layout.KEYS}/{name}.json", layout.seal(note))
        store.publish(f"{layout.KEYS}/{name}.age", wrapped)
    opened = keyring.open_master(store, identities("age1"))
    key_changes.add(store, opened, [AGE2], None, "")
    assert keyring.open_master(store, identities("age2")).master == opened.master


def test_who_was_let_in_by_a_file_that_is_damaged_is_let_in_again(store):
    opened, mine = keyring.open_master(store, identities("ed25519")), key_files.found(store, AGE1).name
    replaced(store, f"{layout.KEYS}/{mine}.age", b"damaged")
    key_changes.add(store, opened, [AGE1], None, "")
    assert keyring.open_master(store, identities("age1")).master == opened.master


def test_one_is_found_by_name_label_or_recipient(store):
    key_changes.add(store, keyring.open_master(store, identities("age1")), [AGE2], None, "safe")
    wanted = next(each for each in key_files.listed(store) if each.recipient == AGE2)
    assert [key_files.found(store, named) for named in (wanted.name, "safe", AGE2)] == [wanted] * 3
    with pytest.raises(errors.UsageError, match=rf"'nobody' is none of its keys; name one by .*{wanted.name} \(safe\)"):
        key_files.found(store, "nobody")


def test_the_last_one_stays(store):
    one, other = key_files.listed(store)
    key_changes.remove(store, [one.name])
    assert key_files.listed(store) == [other] and len(store.files(layout.KEYS)) == 2
    with pytest.raises(errors.UsageError, match="nobody could open it any more"):
        key_changes.remove(store, [other.name])
    assert key_files.listed(store) == [other]


def test_a_damaged_one_is_not_the_last(store):
    one, other = key_files.listed(store)
    replaced(store, f"{layout.KEYS}/{one.name}.age", b"damaged")
    with pytest.raises(errors.UsageError, match="nobody could open it any more"):
        key_changes.remove(store, [other.name])
    key_changes.remove(store, [one.name])
    assert key_files.listed(store) == [other]


def test_two_that_remove_at_once_where_no_lock_keeps_them_apart(store, monkeypatch):
    one, other = key_files.listed(store)
    master, real = keyring.open_master(store, identities("age1", "ed25519")).master, store.delete

    def delete(path):
        monkeypatch.setattr(store, "delete", real)
        key_changes.remove(store, [other.name])
        real(path)

    monkeypatch.setattr(store, "locked", lambda *told: contextlib.nullcontext())
    monkeypatch.setattr(store, "delete", delete)
    with pytest.raises(errors.Busy, match="another nbdpull removed all other keys meanwhile"):
        key_changes.remove(store, [one.name])
    assert (
        len(key_files.listed(store)) == 1 and keyring.open_master(store, identities("age1", "ed25519")).master == master
    )


def test_two_that_remove_at_once(store):
    """One of them waits for nothing: together they could remove the last one."""
    with store.locked("", "x"), pytest.raises(errors.Busy):
        key_changes.remove(store, [key_files.listed(store)[0].name])


def test_a_copy_of_a_store_opens_for_the_same(store, tmp_path):
    assert key_changes.copied(marker.open_or_create(str(tmp_path / "plain"))) is None
    other = marker.open_or_create(str(tmp_path / "copy"), seal=key_changes.copied(store))
    assert marker.master_of(other) == marker.master_of(store) and marker.uuid_of(other) != marker.uuid_of(store)
    assert key_files.listed(other) == key_files.listed(store)
    assert keyring.keys_of(other, identities("age1")) == keyring.keys_of(store, identities("age1"))


def test_a_copy_that_died_before_its_marker_can_be_made_again(store, tmp_path):
    """Wherever in its key files."""
    seal = key_changes.copied(store)
    for count in range(1, len(seal.files) + 1):
        root = tmp_path / f"copy{count}"
        (root / layout.KEYS).mkdir(parents=True)
        for where, wrapped in seal.files[:count]:
            (root / where).write_bytes(wrapped)
        other = marker.open_or_create(str(root), seal=seal)
        assert key_files.listed(other) == key_files.listed(store) and marker.master_of(other) == marker.master_of(store)
    (root / layout.MARKER).unlink()
    (root / where).write_bytes(b"another")
    with pytest.raises(errors.OutputExists):
        marker.open_or_create(str(root), seal=seal)


def test_a_copy_gets_the_keys_that_it_lacks_and_loses_none(store, tmp_path):
    other = marker.open_or_create(str(tmp_path / "copy"), seal=key_changes.copied(store))
    opened = keyring.open_master(store, identities("age1"))
    [new] = key_changes.add(store, opened, [AGE2], None, "")
    key_changes.remove(store, [each.name for each in key_files.listed(store) if each.name != new])
    store.publish(f"{layout.KEYS}/ffffffff.age", b"x" * (age.MAX_FILE + 1))
    store.remove_file(f"{layout.KEYS}/{new}.json")
    key_changes.bring(key_changes.copied(store), other)
    assert len(key_files.listed(other)) == 3 and f"{new}.age" in other.files(layout.KEYS)
    assert all(
        keyring.open_master(other, identities(name)).master == opened.master for name in ("age1", "age2", "ed25519")
    )
    before = os.listdir(other.path(layout.KEYS))
    key_changes.bring(key_changes.copied(store), other)
    assert os.listdir(other.path(layout.KEYS)) == before


# -- identities -------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_told(monkeypatch):
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def test_which_identities_are_meant(nothing_told, monkeypatch, tmp_path):
    assert identity_files.given([]) == []
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert identity_files.given([]) == [], "a unit may have other credentials"
    (tmp_path / "nbdpull.identity").write_bytes(data("age1"))
    [found] = identity_files.given([])
    assert (found.secret, found.name) == (data("age1").strip(), "nbdpull.identity (a credential)")
    monkeypatch.setenv("NBDPULL_IDENTITY_FILE", path("age2"))
    [found] = identity_files.given([])
    assert (found.secret, found.name) == (data("age2").strip(), f"{path('age2')} (NBDPULL_IDENTITY_FILE)")
    [found] = identity_files.given([path("ed25519")])
    assert found.name == path("ed25519"), "what is named counts alone"


def test_an_identity_that_cannot_be_read(nothing_told, monkeypatch, tmp_path):
    for named, why in ((tmp_path / "no", "No such file"), (tmp_path, "Is a directory"), ("a\0b", "a character")):
        with pytest.raises(errors.UsageError, match=f"cannot read the identity .*: .*{why}"):
            identity_files.given([str(named)])
    monkeypatch.setenv("NBDPULL_IDENTITY_FILE", "/nowhere")
    with pytest.raises(
        errors.UsageError, match=r"cannot read the identity /nowhere \(NBDPULL_IDENTITY_FILE\): No such"
    ):
        identity_files.given([])


def test_an_identity_in_a_pipe_can_be_asked_for_again(tmp_path):
    """As bash makes one of <(age -d my.key.age): pull --prune and drill open a store twice."""
    for name in ("age1", "age2"):
        reading, writing = os.pipe()
        os.write(writing, data(name))
        os.close(writing)
        for _ in range(3):
            [found] = identity_files.given([f"/dev/fd/{reading}"])
            assert found.secret == data(name).strip()
        os.close(reading)


@pytest.mark.parametrize(
    "text, why",
    [
        ("age1 is the first age", "would take for a key"),
        ("ssh-keys are nice", "would take for a key"),
        ("ecdsa-is-a-curve", "would take for a key"),
        ("-----BEGIN me", "would take for a key"),
        ("AGE-SECRET-KEY-x", "would take for a key"),
        ("age-plugin-horse", "would take for a key"),
        ("NBDPULL-MASTER-KEY-1-mine", "would take for a key"),
        ("an AGE ENCRYPTED FILE of mine", "would take for a key"),
        ("age-encryption.org/v1 it is", "would take for a key"),
        ("short!?", "fewer than 8 characters"),
        ("üüüüüüü", "fewer than 8 characters"),
        ("", "is empty"),
    ],
)
def test_a_new_passphrase_that_would_not_do(tmp_path, text, why):
    """What is told by --passphrase-file is told by --identity later."""
    for end in ("", "\n", "\r\n"):
        (tmp_path / "new").write_bytes((text + end).encode())
        with pytest.raises(errors.UsageError, match=why) as caught:
            identity_files.new_passphrase(str(tmp_path / "new"))
        assert not text or text not in str(caught.value)


@pytest.mark.parametrize("text", ["correct horse", " blanks count ", "# no comment", "my ssh-key", "üüüüüüüü"])
def test_a_new_passphrase_is_the_one_that_an_identity_is(tmp_path, text):
    (tmp_path / "new").write_text(text + "\n")
    made = identity_files.new_passphrase(str(tmp_path / "new"))
    assert [(each.kind, each.secret) for each in identity_files.given([str(tmp_path / "new")])] == [
        ("passphrase", made)
    ]


def test_a_master_key_as_text():
    text = keys.text_of(bytes(range(32)))
    assert text == f"NBDPULL-MASTER-KEY-1-{bytes(range(32)).hex()}-{text[-8:]}" and len(text) == 94
    assert keys.from_text(text) == bytes(range(32))
    for at in range(len(keys.MASTER_TEXT), len(text)):
        for wrong in (text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :], text[:at] + text[at + 1 :]):
            with pytest.raises(ValueError, match="a character of it"):
                keys.from_text(wrong)
