"""CPU kernels in Numba over vector values. See `simd.py` for the vectors and `common.py` for threads and cache."""
