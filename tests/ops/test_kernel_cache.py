"""The cache of compiled kernels, which several processes write to at the same time."""

import pytest

from hashfield.kernels.numba_cpu import common


def _double(x, thread, threads):
    x[thread] = 2 * x[thread]


@pytest.mark.skipif(not common._CACHE_USABLE, reason="no folder for compiled kernels can be written here")
def test_processes_that_compile_at_once_never_get_each_others_code():
    """One process writes its code between the index and the code of another, whose index it had read before that."""
    one, two = (common.kernel(_double)._cache._cache_file for _ in range(2))
    write, read = one._save_data, two._load_index

    def late(name, data):
        two._load_index = dict  # as it was before the first wrote its own
        two.save("of two", 2)
        two._load_index = read
        write(name, data)

    one._save_data = late
    one.save("of one", 1)
    assert two.load("of two") == 2 and one.load("of one") in (None, 1)
    two.flush()
