"""What a test of an S3 server finds, before a store is created there."""

import datetime

import object_store as object_stores
import pytest
import stores
import unfit_servers
from command import answered, answered_json
from faulty_proxy import FaultyProxy, in_turn

from nbdpull.core import errors
from nbdpull.repository import marker
from nbdpull.storage import probed, s3_probe
from nbdpull.storage.s3 import S3Store
from nbdpull.storage.s3_client import Bucket

pytestmark = pytest.mark.e2e


def probe(place, bucket=None, **options):
    found = s3_probe.probe(Bucket(bucket or place.bucket, 5.0), f"{place.prefix}/", **options)
    assert place.objects() == {}, "it leaves nothing"
    return found


@pytest.fixture
def bucket(object_store):
    """A bucket of a test's own, for settings."""
    with object_stores.new_bucket(object_store.server) as name:
        yield name


def test_seaweedfs(object_store):
    found = probe(object_store)
    assert found.server.startswith("SeaweedFS") and found.checks_sha256
    assert (found.object_lock, found.default_retention, found.versions, found.expires) == (False, None, "", None)
    assert abs(found.clock_ahead) < 60  # it is this host's
    assert found.warnings() == []


def test_ceph(rgw_store):
    """16.2 does not know x-amz-checksum-sha256, but a request is signed with that digest, which it checks."""
    found = probe(rgw_store)
    assert (found.checks_sha256, found.object_lock, found.versions, found.warnings()) == (True, False, "", [])


def test_ceph_with_old_versions(rgw_store):
    """There, 16.2 overwrites whatever the condition is."""
    with object_stores.new_bucket(rgw_store.server) as name:
        versioned(rgw_store, name)
        with pytest.raises(errors.StoreError, match="overwrites .* may do so in a bucket that keeps no old versions"):
            probe(rgw_store, name)


def versioned(place, name):
    place.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})


def test_ceph_with_locks(rgw_store, capsys):
    """They imply old versions."""
    with object_stores.new_bucket(rgw_store.server, ObjectLockEnabledForBucket=True) as name:
        code, _, complaint = answered(capsys, "init", f"s3://{name}", "--immutable-for", "30d")
        assert code == 10 and "overwrites what was to be created only if absent" in complaint
        assert rgw_store.client.list_objects_v2(Bucket=name)["KeyCount"] == 0


@pytest.mark.parametrize("kind", [unfit_servers.Rclone, unfit_servers.JuiceFS])
def test_a_server_that_ignores_the_condition_is_refused(kind, monkeypatch):
    with kind() as server, object_stores.new_bucket(server) as name:
        for variable, value in object_stores.environment(server.endpoint).items():
            monkeypatch.setenv(variable, value)
        place = object_stores.ObjectStore(server, name, "store")
        with pytest.raises(
            errors.StoreError, match="overwrites what was to be created only if absent; .*If-None-Match"
        ):
            probe(place)
        assert place.objects() == {}


def test_a_bucket_with_locks(object_store):
    with object_stores.new_bucket(object_store.server, ObjectLockEnabledForBucket=True) as name:
        found = probe(object_store, name)
        assert (found.object_lock, found.default_retention, found.versions) == (True, None, "Enabled")
        object_store.client.put_object_lock_configuration(
            Bucket=name,
            ObjectLockConfiguration={
                "ObjectLockEnabled": "Enabled",
                "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}},
            },
        )
        found = probe(object_store, name)
        assert found.default_retention == 1
        assert "locks each object for 1 days" in found.warnings()[0]


def test_old_versions_take_room_until_a_rule_deletes_them(object_store, bucket):
    versioned(object_store, bucket)
    found = probe(object_store, bucket)
    assert found.versions == "Enabled" and "keeps old versions" in found.warnings()[0]
    rule(object_store, bucket, "", NoncurrentVersionExpiration={"NoncurrentDays": 3})
    found = probe(object_store, bucket)
    assert (found.old_expire, found.expires, found.warnings()) == (3, None, [])


def rule(place, bucket, prefix, **what):
    rule = {"ID": "rule", "Status": "Enabled", "Filter": {"Prefix": prefix}, **what}
    place.client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})


def test_a_rule_that_would_delete_points(object_store, bucket):
    rule(object_store, bucket, object_store.prefix, Expiration={"Days": 30})
    assert "deletes objects after 30 days" in probe(object_store, bucket).warnings()[0]
    rule(object_store, bucket, "another/prefix/", Expiration={"Days": 30})
    assert probe(object_store, bucket).warnings() == []


def test_a_bucket_that_is_not_there(object_store):
    with pytest.raises(errors.StoreError, match="there is no such bucket"):
        probe(object_store, "no-such-bucket")


def test_missing_rights_are_named(object_store, monkeypatch):
    key, secret = object_stores.NOBODY
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with pytest.raises(errors.AccessDenied, match="allow s3:PutObject on it"):
        probe(object_store)


@pytest.mark.parametrize("every", range(3, 7))
def test_faults_on_the_way_change_nothing(object_store, monkeypatch, every):
    with FaultyProxy(object_store.server.port, in_turn(every)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        found = probe(object_store)
    assert found.checks_sha256 and found.warnings() == []
    assert proxy.faults()


class Lying(Bucket):
    """A proxy in front of a real server, which does what the real one does not do."""

    lie = None

    def tried(self, call, **what):
        code, answer = super().tried(call, **what)
        if self.lie == "two winners" and what.get("Key", "").endswith("/raced"):
            code = ""
        if self.lie == "clock" and call == "head_object":
            answer["LastModified"] -= datetime.timedelta(hours=3)
        if self.lie == "late clock" and call == "head_object":
            answer["ResponseMetadata"]["HTTPHeaders"]["date"] = "Fri, 27 Nov 2026 08:00:00 GMT"
            answer["LastModified"] = datetime.datetime(2026, 11, 27, 8, tzinfo=datetime.timezone.utc)
        return code, answer

    def objects(self, prefix, at_most=None):
        if self.lie == "late list":
            return iter(())
        return super().objects(prefix, at_most)

    def delete(self, key):
        if self.lie != "undead":
            super().delete(key)


@pytest.mark.parametrize(
    "lie, message",
    [
        ("two winners", "of 4 writers of one name, 4 were told that they created it"),
        ("clock", "the server's clock says .*, but it dates a new object"),
        ("late list", "does not list at once what was written"),
        ("undead", "still shows what was deleted"),
    ],
)
def test_unusable_servers_are_refused(object_store, lie, message):
    bucket = Lying(object_store.bucket, 5.0)
    bucket.lie = lie
    with pytest.raises(errors.StoreError, match=message):
        s3_probe.probe(bucket, f"{object_store.prefix}/")


def test_a_wrong_clock_is_a_warning(object_store):
    bucket = Lying(object_store.bucket, 5.0)
    bucket.lie = "late clock"
    assert "ahead of that of the server" in s3_probe.probe(bucket, f"{object_store.prefix}/").warnings()[0]


# -- by command lines -------------------------------------------------------------------------------------------------


def test_an_empty_store_in_a_bucket(object_store, capsys):
    code, output, complaints = answered(capsys, "init", object_store.url)
    message = "creates each name once, and checks SHA-256\nobjects cannot be locked; old versions are not kept\n"
    assert (code, complaints) == (0, "")
    assert output == f"{object_store.url} is an empty store now\nthe server (SeaweedFS 8000GB 4.48) {message}"
    assert [*object_store.objects()] == ["nbdpull.json"]
    assert answered(capsys, "init", object_store.url)[0] == 10
    assert answered(capsys, "list", object_store.url)[::2] == (0, "")


def test_leftovers_of_a_killed_probe_do_no_harm(object_store):
    S3Store(object_store.url).publish("+probe-0123/once", b"first")
    marker.open_or_create(object_store.url)


def test_results_are_recorded_in_the_marker(object_store, bucket, capsys):
    versioned(object_store, bucket)
    code, output, complaints = answered_json(capsys, "init", f"s3://{bucket}")
    assert code == 0 and complaints.startswith("nbdpull: warning: the bucket keeps old versions")
    made = marker.open_store(f"s3://{bucket}")
    assert output["uuid"] == marker.uuid_of(made) and output["object_store"]["versions"] == "Enabled"
    assert marker.of(made).object_store == probed.Probed(**output["object_store"])


def test_an_implicitly_created_store_gets_the_warnings_too(object_store, bucket, tmp_path, capsys):
    versioned(object_store, bucket)
    message, url = "the bucket keeps old versions", f"s3://{bucket}"
    made = marker.open_or_create(f"{url}/pulled")  # as a pull does, which shows the warnings of the store at its end
    assert made.warnings()[0].startswith(message)
    assert marker.open_or_create(f"{url}/pulled").warnings() == []
    stores.chain(tmp_path / "store", points=1)
    assert answered(capsys, "copy", tmp_path / "store", f"{url}/copied")[2].startswith(f"nbdpull: warning: {message}")


def test_no_store_is_made_on_a_server_that_is_not_fit(rgw_store, capsys):
    with object_stores.new_bucket(rgw_store.server) as name:
        versioned(rgw_store, name)
        code, output, complaints = answered(capsys, "init", f"s3://{name}")
        assert (code, output) == (10, "") and "overwrites what was to be created only if absent" in complaints
        assert rgw_store.client.list_objects_v2(Bucket=name)["KeyCount"] == 0
