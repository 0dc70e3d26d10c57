"""The domain of a drill, step by step. test_drill.py boots it."""

import os

import pytest
from fake_libvirt import Meddled, error_of, libvirt, raising

from nbdpull.core import errors
from nbdpull.hypervisor import domain_boot
from nbdpull.hypervisor.domain_boot import Boot

NO_DOMAIN = error_of(libvirt.VIR_ERR_NO_DOMAIN)
FAILED = error_of(libvirt.VIR_ERR_OPERATION_FAILED)


def boot(connection=None, **methods):
    return Boot(connection, Meddled(**methods))


# -- its life ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("destroy", [lambda: None, raising(NO_DOMAIN), raising(FAILED)])
@pytest.mark.parametrize("raised", [None, KeyError])
def test_a_domain_ends_with_its_block(destroy, raised):
    """It ends with the connection anyway: an error of its end hides no other."""
    calls = []

    def create(xml, flags):
        calls.append((xml, flags))
        return Meddled(destroy=lambda: (calls.append("destroy"), destroy()))

    def run():
        with domain_boot.booted(Meddled(createXML=create), "<domain/>"):
            calls.append("booted")
            if raised:
                raise raised

    if raised:
        with pytest.raises(raised):
            run()
    else:
        run()
    assert calls == [("<domain/>", libvirt.VIR_DOMAIN_START_AUTODESTROY), "booted", "destroy"]


def test_a_domain_that_does_not_start():
    says = "libvirt does not start the drill's domain: .*libvirt's words in lines"
    broken = Meddled(createXML=raising(FAILED))
    with pytest.raises(errors.HypervisorError, match=says), domain_boot.booted(broken, "<domain/>"):
        pytest.fail("it was not started")


@pytest.mark.parametrize("answer, active", [(lambda: 1, True), (lambda: 0, False), (raising(NO_DOMAIN), False)])
def test_a_domain_that_has_ended_is_gone(answer, active):
    assert boot(isActive=answer).active is active


def test_a_libvirt_that_does_not_know():
    with pytest.raises(errors.HypervisorError, match="cannot check whether the drill's domain runs"):
        assert boot(isActive=raising(FAILED)).active


# -- its agent ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code, answers", [
    (None, True),
    (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, False),
    (97, False),  # VIR_ERR_AGENT_UNSYNCED
    (112, False),  # VIR_ERR_AGENT_COMMAND_TIMEOUT
    (libvirt.VIR_ERR_OPERATION_INVALID, False),
    (libvirt.VIR_ERR_NO_DOMAIN, False),
])  # fmt: skip
def test_an_agent_that_does_not_answer_yet(monkeypatch, code, answers):
    def ask(_dom, command, seconds, _flags):
        assert "guest-ping" in command and seconds == domain_boot.PING_TIMEOUT
        if code is not None:
            raise error_of(code)
        return '{"return":{}}'

    monkeypatch.setattr(domain_boot.libvirt_qemu, "qemuAgentCommand", ask)
    assert boot().agent_answers() is answers


def test_an_agent_that_may_not_be_asked(monkeypatch):
    """It would never answer."""
    monkeypatch.setattr(domain_boot.libvirt_qemu, "qemuAgentCommand", raising(error_of(libvirt.VIR_ERR_ACCESS_DENIED)))
    with pytest.raises(errors.AccessDenied, match="cannot ask the guest agent"):
        boot().agent_answers()


# -- its picture -------------------------------------------------------------------------------------------------------


class Stream:
    """Hands over a picture in parts. fails: whether it breaks off."""

    def __init__(self, fails=False):
        self._fails = fails

    def recvAll(self, receive, opaque):
        for part in (b"a ", b"picture"):
            receive(self, part, opaque)

    def finish(self):
        if self._fails:
            raise FAILED


@pytest.mark.parametrize("kind, ending", [("image/png", "png"), ("image/x-portable-pixmap", "ppm")])
def test_a_picture_of_the_display(kind, ending):
    made = boot(Meddled(newStream=Stream), screenshot=lambda _stream, _screen: kind)
    assert made.screenshot() == (ending, b"a picture")


@pytest.mark.parametrize(
    "shot, stream", [(raising(FAILED), Stream), (lambda *_args: "image/png", lambda: Stream(True))]
)
def test_without_a_display_or_a_whole_picture_there_is_none(shot, stream):
    assert boot(Meddled(newStream=stream), screenshot=shot).screenshot() is None


# -- its host ----------------------------------------------------------------------------------------------------------

DAC = "<capabilities><host><secmodel><model>dac</model><baselabel type='kvm'>{0}</baselabel>" \
      "<baselabel type='qemu'>{0}</baselabel></secmodel></host></capabilities>"  # fmt: skip


def test_the_user_of_qemu():
    def user(uri, label="+64055:+108"):
        return domain_boot.qemu_user(Meddled(getCapabilities=lambda: DAC.format(label), getURI=lambda: uri))

    assert user("qemu:///system") == 64055
    assert user("qemu:///session") == os.geteuid()
    assert domain_boot.qemu_user(
        Meddled(getCapabilities=lambda: "<capabilities/>", getURI=lambda: "qemu:///system")
    ) is None  # fmt: skip


def test_a_connection_is_closed_whatever_happens(monkeypatch):
    closed = []

    def close():
        closed.append(True)
        raise FAILED

    monkeypatch.setattr(libvirt, "open", lambda _uri: Meddled(close=close))
    with pytest.raises(KeyError), domain_boot.connected(None):
        raise KeyError
    assert closed == [True]
