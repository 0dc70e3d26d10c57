"""Work that a test does in several threads at once."""

from concurrent.futures import ThreadPoolExecutor


def at_once(work, items):
    """Return work(item) for each of the items, each in its own thread, or raise the first error. With a plain thread,
    pytest reports an error only as a warning, and the test passes."""
    items = list(items)
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(work, items))
