"""The mark on a running domain: any reader knows whose it is, even if another version wrote it."""

import pytest
from fake_libvirt import error_of, libvirt

from nbdpull.core import process
from nbdpull.core.process import Process
from nbdpull.hypervisor import domain_mark


class Dom:
    """A domain with nothing but its live metadata, by namespace, as libvirt keeps them."""

    def __init__(self):
        self.live = {}

    def setMetadata(self, kind, text, key, uri, flags):
        assert (kind, flags) == (libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        self.live[uri] = text

    def metadata(self, kind, uri, flags):
        assert (kind, flags) == (libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        if self.live.get(uri) is None:
            raise error_of(libvirt.VIR_ERR_NO_DOMAIN_METADATA)
        return self.live[uri]


def test_each_mark_names_its_owner():
    dom = Dom()
    ours = domain_mark.put(dom, domain_mark.STARTED_PAUSED)
    init = domain_mark.put(dom, domain_mark.FREEZING, 1)
    assert ours == process.of() and init == process.of(1) != ours
    assert domain_mark.owner(dom, domain_mark.STARTED_PAUSED) == ours and ours.is_alive
    assert domain_mark.owner(dom, domain_mark.FREEZING) == init
    domain_mark.remove(dom, domain_mark.STARTED_PAUSED)
    assert domain_mark.owner(dom, domain_mark.STARTED_PAUSED) is None
    assert domain_mark.owner(dom, domain_mark.FREEZING) == init


def test_any_name_of_a_host(monkeypatch):
    dom = Dom()
    monkeypatch.setattr(process.platform, "node", lambda: "h\"<&>'ö")
    put = domain_mark.put(dom, domain_mark.FREEZING)
    assert put.host == "h\"<&>'ö" and domain_mark.owner(dom, domain_mark.FREEZING) == put


@pytest.mark.parametrize("text", ["<started by='host1'/>", "<started by='host1' pid='x' started='1'/>"])
def test_a_mark_of_another_form_has_an_unknown_owner(text):
    dom = Dom()
    dom.live[domain_mark.uri(domain_mark.FREEZING)] = text
    owner = domain_mark.owner(dom, domain_mark.FREEZING)
    assert owner == Process(host="host1") and owner.is_alive is None and not owner.is_dead


@pytest.mark.parametrize("code, marked", [(libvirt.VIR_ERR_OPERATION_INVALID, False), (libvirt.VIR_ERR_RPC, True)])
def test_only_a_domain_that_is_off_certainly_has_no_mark(code, marked):
    """An error that does not mean "there is no mark" is not taken for that: a frozen guest would remain frozen."""

    class Failing(Dom):
        def metadata(self, *_args):
            raise error_of(code)

    if marked:
        with pytest.raises(libvirt.libvirtError):
            domain_mark.owner(Failing(), domain_mark.FREEZING)
    else:
        assert domain_mark.owner(Failing(), domain_mark.FREEZING) is None
