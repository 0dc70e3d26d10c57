"""The policies in a store: which one applies, and that none is followed if a part of them cannot be read."""

import contextlib
import errno
import json
import random
import zoneinfo
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from command import answered as said
from command import answered_json as run
from documents import blocks
from stores import daily, damaged, flipped, ids, unprivileged

from nbdpull.core import errors
from nbdpull.format import layout
from nbdpull.operations import prune
from nbdpull.repository import half_points, marker, policies, removal
from nbdpull.repository.policies import StoredPolicy
from nbdpull.repository.retention import Policy
from nbdpull.storage import directory

UUID = "0d5e4ab1-22a1-4b4f-9d0c-0f6f1f2a7c11"
FORMAT = (Path(__file__).parent.parent / "docs/format.md").read_text()


@pytest.fixture
def store(tmp_path):
    return marker.open_or_create(str(tmp_path / "store"))


def put(store, *patterns):
    """Write a policy for each, which keep different numbers; return {pattern: policy}."""
    made = {pattern: Policy(keep_last=number) for number, pattern in enumerate(patterns, 1)}
    for pattern, policy in made.items():
        policies.put(store, pattern, policy)
    return made


# -- which one counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "pattern"),
    [
        ("db1", "db1"),
        ("dba", "db*"),
        ("db-prod", "*-prod"),
        ("db10", "db[0-9]*"),
        ("db[0-9]*", "db[0-9]*"),
        ("web", None),
        ("DB2", None),
    ],
)
def test_the_name_itself_then_the_longest_pattern(store, domain, pattern):
    made = put(store, "db*", None, "*-prod", "db[0-9]*", "db[1]", "db1")
    assert policies.applying(policies.load(store), domain) == StoredPolicy(pattern, made[pattern])


def test_as_a_naive_model_says(store):
    rng = random.Random(4)
    for _ in range(9):
        patterns = {"".join(rng.choices("ab*?", k=rng.randrange(1, 5))) for _ in range(rng.randrange(5))}
        made = put(store, *rng.sample(sorted(patterns), len(patterns)))
        for domain in ("a", "ab", "abb", "bab", "b*"):
            fitting = sorted(each for each in made if each == domain or fnmatchcase(domain, each))
            plain = [each for each in fitting if not {"*", "?"} & set(each)]
            best = plain[0] if plain else max(fitting, key=len, default=None)  # of equal ones the first
            applying = policies.applying(policies.load(store), domain)
            assert (applying and applying.pattern) == best
        for pattern in made:
            assert policies.drop(store, pattern)
        assert not store.holds(layout.POLICY) and not policies.drop(store, None)


def test_what_is_written_is_read(store):
    policy = Policy(keep_last=1, keep_hourly=2, keep_weekly=3, keep_within=86400.5, time_zone="Europe/Berlin")
    for pattern in ("ü*", None):
        policies.put(store, pattern, policy)
    assert policies.load(store) == [StoredPolicy("ü*", policy), StoredPolicy(None, policy)]
    policies.put(store, None, Policy(keep_yearly=9))
    assert policies.load(store)[1] == StoredPolicy(None, Policy(keep_yearly=9))
    assert store.names("") == [layout.MARKER, layout.POLICY], "and no draft is left"


def test_every_line_has_at_most_80_characters(store, capsys):
    """And no option is separated from its value."""
    counts = dict.fromkeys(
        [f"keep_{name}" for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly")], 10**6
    )
    zone = max(zoneinfo.available_timezones(), key=len)  # Debian 13 has some in a package of their own
    policies.put(store, None, Policy(**counts, keep_within=86400.5, time_zone=zone))
    first, *lines = said(capsys, "policy", store.root)[1].splitlines()
    assert first == "all domains:" and len(lines) > 1 and max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    assert len(words) == 16 and all(line.split()[0].startswith("--") for line in lines)


def test_the_example_of_the_format(store):
    """It was written by that page only, and what we write has the same layout."""
    [text] = blocks(FORMAT, "json policy.json")
    (store_file := Path(store.path(layout.POLICY))).write_text(text)
    found = policies.load(store)
    assert found == [
        StoredPolicy("db*", Policy(keep_daily=30, keep_monthly=12, time_zone="Europe/Berlin")),
        StoredPolicy(None, Policy(keep_daily=7, keep_within=172800.0)),
    ]
    document = json.loads(text)
    for each in reversed(found):
        policies.drop(store, each.pattern)
        policies.put(store, each.pattern, each.policy)
    written = json.loads(store_file.read_text())
    assert list(written) == list(document) and written["policies"] == document["policies"]


def test_what_cannot_be_written_leaves_the_old_one(store, monkeypatch):
    """Whether the last step fails, or is not reached."""
    policies.put(store, None, Policy(keep_last=1))

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(directory, "_rename", fails)
    with pytest.raises(errors.OutputError, match="policy.json: Input/output error"):
        policies.put(store, None, Policy(keep_last=2))
    assert policies.load(store) == [StoredPolicy(None, Policy(keep_last=1))]
    assert store.names("") == [layout.MARKER, layout.POLICY]


def test_one_changes_them_at_a_time(store):
    with store.locked("", "wait"), pytest.raises(errors.Busy, match="try again when it has ended"):
        policies.put(store, None, Policy(keep_last=1))
    assert policies.load(store) == []


@pytest.mark.parametrize("change", [policies.drop, policies.put_immutability])
def test_a_run_that_read_no_policy_removes_none(store, monkeypatch, change):
    """Without locks, another host may have written one by then."""
    real = policies._content

    def changed_meanwhile(store):
        found = real(store)
        monkeypatch.setattr(policies, "_content", real)
        policies.put(store, "other", Policy(keep_last=1))
        return found

    monkeypatch.setattr(type(store), "has_locks", False)
    monkeypatch.setattr(type(store), "locked", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(policies, "_content", changed_meanwhile)
    assert not change(store, None)
    assert policies.load(store) == [StoredPolicy("other", Policy(keep_last=1))]


# -- what is not followed ---------------------------------------------------------------------------------------------


def sealed(**document):
    return layout.seal({"format": layout.FORMAT, "requires": [], **document})


GOOD = {"domain": None, "keep_daily": 7}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", errors.Damaged),
        (b"{}", errors.Damaged),
        (sealed(), errors.Damaged),
        (sealed(policies=None), errors.Damaged),
        (sealed(policies=[GOOD, {**GOOD, "keep_lunar": 13}]), errors.Damaged),
        (sealed(policies=[GOOD, {"domain": "db*"}]), errors.Damaged),
        (sealed(policies=[GOOD, {"keep_daily": 7}]), errors.Damaged),
        (sealed(policies=[{**GOOD, "domain": 5}]), errors.Damaged),
        (sealed(policies=[{**GOOD, "keep_daily": "7"}]), errors.Damaged),
        (sealed(policies=[{**GOOD, "keep_daily": True}]), errors.Damaged),
        (sealed(policies=[{**GOOD, "keep_within": -1}]), errors.Damaged),
        (sealed(policies=[{**GOOD, "time_zone": "Mars/Olympus"}]), errors.MissingSoftware),
        (flipped(sealed(policies=[GOOD]), 60), errors.Damaged),
        (sealed(policies=[GOOD], requires=["lunar"]), errors.FormatTooNew),
        (sealed(policies=[GOOD], format="nbdpull/3"), errors.FormatTooNew),
    ],
)
def test_no_policy_is_followed_where_one_cannot_be_read(tmp_path, capsys, data, kind):
    """Not even a readable one: what the other one is meant to keep would be removed. Prune is safe without any
    option."""
    vm = daily(tmp_path / "store", 2)
    (vm.root / layout.POLICY).write_bytes(data)
    for words in (["prune", vm.root], ["policy", vm.root], ["policy", vm.root, "--keep-last", "1"]):
        code, _, err = said(capsys, *words)
        assert code == kind.exit_code and "policy.json" in err and err.count("\n") == 1
        assert ("delete it first" in err) == (kind is errors.Damaged)
        assert ("does not know the time zone 'Mars/Olympus': install tzdata" in err) == (kind is errors.MissingSoftware)
    assert len(ids(vm)) == 2 and (vm.root / layout.POLICY).read_bytes() == data
    assert said(capsys, "prune", vm.root, "--keep-last", "1", "--force")[0] == 0, "options win, whole"
    assert len(ids(vm)) == 1


def test_a_policy_that_may_not_be_read(tmp_path, capsys):
    with unprivileged() as folder:
        vm = daily(folder / "store", 2)
        policies.put(vm.store, None, Policy(keep_last=1))
        (vm.root / layout.POLICY).chmod(0)
        code, _, err = said(capsys, "prune", vm.root)
        assert code == 11 and "Permission denied" in err
        (vm.root / layout.POLICY).unlink()
        (vm.root / layout.POLICY).symlink_to("/etc/passwd")
        assert said(capsys, "prune", vm.root)[0] == 11


# -- as they are called -----------------------------------------------------------------------------------------------


def test_a_policy_is_written_shown_and_removed(tmp_path, capsys):
    root = daily(tmp_path / "store", 1).root
    assert said(capsys, "policy", root) == (0, "no policy\n", "")
    code, found, _ = run(capsys, "policy", root, "--keep-daily", "7", "--keep-within", "36h")
    everywhere = {"domain": None, "keep_daily": 7, "keep_within": 129600.0, "time_zone": "UTC"}
    assert code == 0 and found == {"policies": [everywhere], "immutable": None, "changed": True}
    assert run(capsys, "policy", root, "--keep-daily", "7", "--keep-within", "36h")[1]["changed"] is False
    zone = ["--time-zone", "Europe/Berlin"]
    code, out, _ = said(capsys, "policy", root, "--domain", "db*", "--keep-daily", "30", *zone)
    assert code == 0 and out.splitlines() == [
        "db*:",
        "  --keep-daily 30 --time-zone Europe/Berlin",
        "all domains:",
        "  --keep-daily 7 --keep-within 36h",
    ]
    assert run(capsys, "policy", root, "--domain", "db1")[1]["policies"][0]["domain"] == "db*"
    assert run(capsys, "policy", root, "--domain", "vm1")[1] == {
        "policies": [everywhere],
        "immutable": None,
        "changed": False,
    }
    code, _, err = said(capsys, "policy", root, "--domain", "db1", "--remove")
    assert code == 10 and "has no policy of db1; it has: one of db*, one of all domains" in err
    assert run(capsys, "policy", root, "--remove")[1]["changed"] is True
    assert said(capsys, "policy", root, "--domain", "vm1") == (0, "no policy for vm1\n", "")
    assert said(capsys, "policy", root, "--domain", "db*", "--remove") == (0, "no policy\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep-last", "0"], "the policy keeps nothing"),
        (["--time-zone", "UTC"], "the policy keeps nothing"),
        (["--keep-last", "1", "--time-zone", "Mars/Olympus"], "there is no time zone 'Mars/Olympus'"),
        (["--keep-last", "1", "--remove"], "--remove takes no rules"),
        (["--keep-last", "1", "--domain", ""], "--domain has no name"),
        (["--keep-last", "1", "--domain", "x" * 4097], "--domain has more than 4096 characters"),
        (["--keep-last", "1", "--domain", "caf\udce9"], "--domain is not text in UTF-8"),
    ],
)
def test_invalid_policies(tmp_path, capsys, words, message):
    root = daily(tmp_path / "store", 1).root
    code, _, err = said(capsys, "policy", root, *words)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (root / layout.POLICY).exists()


def test_a_policy_for_a_uuid_is_refused(tmp_path, capsys):
    """It used to be written, and applied to no domain."""
    vm = daily(tmp_path / "store", 1)
    for words in (["--keep-last", "3"], []):
        for asked in (vm.uuid, vm.uuid.upper()):
            expected = f"nbdpull: policies apply by name, and {asked} is the UUID of vm1: use --domain vm1\n"
            assert said(capsys, "policy", vm.root, "--domain", asked, *words) == (2, "", expected)
    assert policies.load(vm.store) == []
    daily(vm.root, 1, vm.uuid, UUID)
    assert said(capsys, "policy", vm.root, "--domain", vm.uuid, "--keep-last", "3")[0] == 0, "it is a name, too"
    assert said(capsys, "policy", vm.root, "--domain", UUID, "--remove")[0] == 10


def test_prune_by_the_policies_of_the_store(tmp_path, capsys):
    """Each domain by the one that applies to it; a domain without one is left alone."""
    vm = daily(tmp_path / "store", 5)
    other = daily(tmp_path / "store", 5, "db1", UUID)
    assert said(capsys, "prune", vm.root)[::2] == (
        2,
        "nbdpull: no policy given, and the store has none: say what to keep, as in --keep-daily 7 "
        f"--keep-weekly 4, or write it into the store: nbdpull policy {vm.root}\n",
    )
    said(capsys, "policy", vm.root, "--domain", "db*", "--keep-last", "4")
    code, found, _ = run(capsys, "prune", vm.root, "--dry-run")
    assert code == 0 and [(each["domain"], each["policy"], len(each["removed"])) for each in found["domains"]] == [
        ("db1", {"in_store": True, "domain": "db*", "keep_last": 4, "time_zone": "UTC"}, 1),
        ("vm1", None, 0),
    ]
    code, _, err = said(capsys, "prune", vm.root, "--domain", "vm1")
    assert code == 2 and "the store has none for vm1: say what" in err, "it has one"
    policies.drop(vm.store, "db*")
    policies.put(vm.store, "web*", Policy(keep_last=4))
    assert "the store has none for any of its domains: say what" in said(capsys, "prune", vm.root)[2]
    policies.put(vm.store, "db*", Policy(keep_last=4))
    said(capsys, "policy", vm.root, "--keep-last", "3")
    code, out, _ = said(capsys, "prune", vm.root)
    assert code == 0 and (len(ids(vm)), len(ids(other))) == (3, 4)
    assert "1 of 5 points removed (--keep-last 4, the store's policy for db*)" in out
    assert "2 of 5 points removed (--keep-last 3, the store's policy for all domains)" in out


def test_the_name_of_a_domain_is_no_pattern(tmp_path, capsys):
    """Such a domain could not be addressed on its own: another domain lost points by what was meant for this one."""
    vm, other = daily(tmp_path / "store", 5, "vm[1]"), daily(tmp_path / "store", 5, "vm1", UUID)
    assert said(capsys, "prune", vm.root, "--domain", "vm[1]", "--keep-last", "4")[0] == 0
    assert (len(ids(vm)), len(ids(other))) == (4, 5)
    policies.put(vm.store, "vm[[0-9]*[1-9]*", Policy(keep_last=1))
    policies.put(vm.store, None, Policy(keep_last=9))
    assert said(capsys, "policy", vm.root, "--domain", "vm[1]", "--keep-last", "3")[0] == 0
    applying = {name: policies.applying(policies.load(vm.store), name) for name in ("vm[1]", "vm1")}
    assert [each and each.pattern for each in applying.values()] == ["vm[[]1]", None]
    assert said(capsys, "prune", vm.root)[0] == 0
    assert (len(ids(vm)), len(ids(other))) == (3, 5), "and a longer pattern does not count"
    assert said(capsys, "policy", vm.root, "--domain", "vm[1]", "--remove")[0] == 0
    policies.put(vm.store, "vm[1]", Policy(keep_last=1))
    assert said(capsys, "policy", vm.root, "--domain", "vm[1]", "--remove")[0] == 0, "one from before the domain"
    assert len(policies.load(vm.store)) == 2
    for asked, found in (("vm[1]", ["vm[1]"]), ("vm*1*", ["vm1", "vm[1]"])):
        domains = run(capsys, "status", vm.root, "--domain", asked)[1]["domains"]
        assert [each["domain"] for each in domains] == found


@pytest.mark.parametrize("name", ["vm[1]", "*", "a?[b]", "[", "]", "[!a]", "vm1"])
def test_a_pattern_of_one_name(store, name):
    [made, wide] = put(store, policies.pattern_of(name), "*?????????????" if name == "*" else "?*").values()
    others = {"vm1", "a", "ab", "[a]", "aab", "x"} - {name}
    found = {each: policies.applying(policies.load(store), each) for each in (name, *others)}
    assert [each for each, applying in found.items() if applying and applying.policy == made] == [name]


def test_options_win_whole(tmp_path, capsys):
    """They are never mixed with a policy of the store, even if they keep nothing."""
    vm = daily(tmp_path / "store", 4)
    policies.put(vm.store, None, Policy(keep_last=4))
    assert said(capsys, "prune", vm.root, "--keep-last", "0")[0] == 2
    assert said(capsys, "prune", vm.root, "--time-zone", "UTC")[0] == 2
    code, out, _ = said(capsys, "prune", vm.root, "--keep-last", "2")
    assert code == 0 and len(ids(vm)) == 2 and "(--keep-last 2)" in out


# -- after a pull -----------------------------------------------------------------------------------------------------


def test_a_pull_that_is_to_prune_needs_a_policy(tmp_path):
    """One for its domain; this is reported before anything is started, and creates no store."""
    root = str(tmp_path / "store")
    with pytest.raises(errors.UsageError, match="has no policy; write one with nbdpull policy"):
        prune.require_policy(root)
    assert not (tmp_path / "store").exists()
    vm = daily(root, 1)
    with pytest.raises(errors.UsageError, match="has no policy for vm1; write one"):
        prune.require_policy(root, "vm1")
    policies.put(vm.store, "db*", Policy(keep_last=1))
    prune.require_policy(root)
    prune.require_policy(root, "db1")
    with pytest.raises(errors.UsageError, match="has no policy for vm1; write one"):
        prune.require_policy(root, "vm1")
    (vm.root / layout.POLICY).write_bytes(b"{}")
    with pytest.raises(errors.Damaged, match="policy.json"):
        prune.require_policy(root, "vm1")


def test_a_pull_goes_on_where_its_host_lacks_a_time_zone(tmp_path):
    """Nothing is wrong with the store: a night without a point is worse than one without a prune."""
    vm = daily(tmp_path / "store", 5)
    (vm.root / layout.POLICY).write_bytes(sealed(policies=[{**GOOD, "time_zone": "Mars/Olympus"}]))
    prune.require_policy(str(vm.root))
    prune.require_policy(str(vm.root), "vm1")
    pruned, [warning] = after_pull(vm)
    assert warning.startswith("the point is committed, but the pruning failed: ") and "install tzdata" in warning
    assert pruned.problem and len(ids(vm)) == 5


def after_pull(vm, check=lambda: None):
    """Return what was done to its series, and the warnings."""
    pruned = prune.after_pull(str(vm.root), vm.points[-1], [], check)
    return pruned, prune.warnings(pruned)


def test_after_a_pull_its_series_is_pruned_and_no_other(tmp_path):
    vm = daily(tmp_path / "store", 5)
    other = daily(tmp_path / "store", 5, "vm2", UUID)
    policies.put(vm.store, None, Policy(keep_last=3))
    before = ids(vm)
    pruned, warnings = after_pull(vm)
    assert warnings == [] and pruned.removed == before[:2] and ids(vm) == before[2:] and len(ids(other)) == 5
    assert pruned.swept.freed == 0 and pruned.swept.waiting > 0, "readers have a day"


def interrupted():
    raise errors.Interrupted(2)


def test_a_prune_that_fails_is_a_warning_about_a_point_that_is_there(tmp_path, monkeypatch):
    vm = daily(tmp_path / "store", 5)
    policies.put(vm.store, None, Policy(keep_last=2))
    assert "more than half of its points would be removed" in after_pull(vm)[1][0]
    policies.put(vm.store, None, Policy(keep_last=3))
    with half_points.writing(vm.series):
        assert "another nbdpull writes to" in after_pull(vm)[1][0]
    with damaged(vm.folder / vm.points[0].id / layout.MANIFEST, b"{}"):
        assert "a point cannot be read" in after_pull(vm)[1][0]
    with damaged(vm.root / layout.POLICY, b"{}"):
        assert "policy.json: not a document" in after_pull(vm)[1][0]
    with damaged(vm.root / layout.POLICY, None):
        assert after_pull(vm)[1] == ["the store has no policy for vm1 any more: nothing was pruned"]
    assert len(ids(vm)) == 5


@pytest.mark.parametrize("verb", [True, False])
def test_removals_before_a_failure_are_reported(tmp_path, monkeypatch, verb):
    """After a signal between two steps, or an error of a disk, the result lists the points that are gone."""
    vm = daily(tmp_path / "store", 5)
    policies.put(vm.store, None, Policy(keep_last=3))
    before, rename, done = ids(vm), removal.remove, []

    def failing(target, point):
        if done:
            raise errors.OutputError("cannot rename it: Input/output error")
        done.append(rename(target, point))

    monkeypatch.setattr(removal, "remove", failing)
    [pruned] = prune.prune(prune.Options(str(vm.root))).domains if verb else [after_pull(vm)[0]]
    assert pruned.removed == before[:1] and "Input/output error" in pruned.problem and ids(vm) == before[1:]


def test_an_interrupted_prune_says_so(tmp_path):
    """After a pull it is a warning; the verb ends with the exit code of the signal."""
    vm = daily(tmp_path / "store", 5)
    policies.put(vm.store, None, Policy(keep_last=4))
    pruned, [warning] = after_pull(vm, interrupted)
    assert "interrupted" in warning and pruned.removed == [vm.points[0].id]
    with pytest.raises(errors.Interrupted):
        prune.prune(prune.Options(str(vm.root)), check=interrupted)


# -- beside -----------------------------------------------------------------------------------------------------------


def test_a_policy_is_no_point_and_no_series(tmp_path, capsys):
    """list, verify and a copy of the store ignore it."""
    vm = daily(tmp_path / "store", 1)
    before = said(capsys, "list", vm.root)
    policies.put(vm.store, "db*", Policy(keep_last=4))
    assert said(capsys, "list", vm.root) == before and said(capsys, "verify", vm.root)[0] == 0
    assert json.loads((vm.root / layout.POLICY).read_text())["policies"] == [
        {"domain": "db*", "keep_last": 4, "time_zone": "UTC"}
    ]
