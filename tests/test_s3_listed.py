"""What listings showed, in nested blocks."""

from contextlib import ExitStack

from nbdpull.storage.s3_client import Found
from nbdpull.storage.s3_listed import Listed


def found(*names):
    return {f"vm/{name}": Found(f"vm/{name}", 1, 0.0) for name in names}


def test_an_outer_block_keeps_its_listing():
    """And sees what was changed in the inner one."""
    listed = Listed()
    with listed.during("vm", found("a", "b")):
        with listed.during("vm", found("a", "b", "new")):
            assert {*listed.of("vm/a")} == {"vm/a", "vm/b", "vm/new"}
            listed.forget("vm/a")
            listed.note(Found("vm/mine", 1, 0.0))
        assert {*listed.of("vm/a")} == {"vm/b", "vm/mine"}
    assert listed.of("vm/a") is None


def test_blocks_of_two_threads_end_in_any_order():
    listed = Listed()
    one, two = ExitStack(), ExitStack()
    one.enter_context(listed.during("vm", found("a")))
    two.enter_context(listed.during("vm", found("b")))
    one.close()
    assert {*listed.of("vm/a")} == {"vm/b"}
    two.close()
    assert listed.of("vm/a") is None
