"""A master key as text."""

import pytest

from nbdpull.crypto import keys


def test_a_master_key_as_text():
    text = keys.text_of(bytes(range(32)))
    assert text == f"NBDPULL-MASTER-KEY-1-{bytes(range(32)).hex()}-{text[-8:]}" and len(text) == 94
    assert keys.from_text(text) == bytes(range(32))
    for at in range(len(keys.MASTER_TEXT), len(text)):
        for wrong in (text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :], text[:at] + text[at + 1 :]):
            with pytest.raises(ValueError, match="it has a"):
                keys.from_text(wrong)
