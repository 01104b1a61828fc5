"""Points per second of the hash grid, forward and backward, beside other ways to compute the same thing.

    python benchmarks/grid.py [--points 262144] [--skip-slow]

All rivals run in this process, one after another, on the same points: plain torch (our reference), torch's
`embedding_bag` and `index_add_` given ready-made indices and weights (so without the hashing), and, if installed, Dr.Jit's
hash grid on LLVM and the package fast-ngp 0.1.0 (`MultiresHashEncoding`; speed only, its interpolation swaps x and z).
"""

import argparse

import numpy as np
import torch
from common import append, cpu_model, gather_rates, other_load, timed

from hashfield.geometry.grid_layout import GridLayout, per_level_scale_between
from hashfield.kernels.reference import grid_encode as reference
from hashfield.ops.grid_encode import grid_encode


def points(kind: str, n: int) -> torch.Tensor:
    """Uniform points, or 64 consecutive steps of sqrt(3)/1024 along random rays."""
    rng = np.random.default_rng(0)
    if kind == "random":
        return torch.from_numpy(rng.random((n, 3), dtype=np.float32))
    origin, direction = rng.random((n // 64, 1, 3)), rng.standard_normal((n // 64, 1, 3))
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    steps = np.arange(64)[None, :, None] * (3**0.5 / 1024)
    return torch.from_numpy(((origin + direction * steps) % 1.0).reshape(-1, 3).astype(np.float32))


def ready_made(x: torch.Tensor, layout: GridLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices [n, L, 8] into the table and weights, as a form that does not hash would be given."""
    table = torch.zeros(layout.n_entries, 1)
    weights, indices = [], []
    for level in range(layout.n_levels):
        scale = float(layout.scales[level])
        q = x.double() * scale + 0.5
        cell = q.floor().long()
        f = (q - cell).float()
        for corner in range(8):
            offset = torch.tensor([corner >> d & 1 for d in range(3)])
            vertex = cell + offset
            stride = torch.from_numpy(layout.strides[level].astype(np.int64))
            terms = (vertex * stride) & 0xFFFFFFFF
            index = terms[:, 0] ^ terms[:, 1] ^ terms[:, 2] if layout.is_hashed[level] else terms.sum(1)
            indices.append(index % int(layout.entries[level]) + int(layout.level_offsets[level]))
            weights.append(torch.where(offset.bool(), f, 1 - f).prod(1))
    del table
    n = len(x)
    return (
        torch.stack(indices, 1).reshape(n, layout.n_levels, 8),
        torch.stack(weights, 1).reshape(n, layout.n_levels, 8),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=2**18)
    parser.add_argument("--skip-slow", action="store_true", help="leave out plain torch and fast-ngp")
    options = parser.parse_args()
    n = options.points
    print(f"{cpu_model()}; others keep {other_load():.2f} cores busy")
    rows = []
    for n_levels, n_features in ((16, 2), (8, 4)):
        layout = GridLayout(
            n_levels=n_levels, n_features_per_level=n_features,
            per_level_scale=per_level_scale_between(16, 2048, n_levels),
        )  # fmt: skip
        shape = f"L{n_levels} F{n_features} T2^19"
        limits = gather_rates(2**19 * n_features * 2)
        table = (torch.rand(layout.n_entries, n_features) * 2 - 1) * 0.1
        for kind in ("random", "rays"):
            x = points(kind, n)
            cotangent = torch.randn(n, layout.n_output)
            forms = {  # the optimiser keeps the rounded table, so a training step finds it ready
                "bfloat16": {"precision": "bfloat16", "table_bf16": table.to(torch.bfloat16)},
                "bfloat16, table rounded in the call": {"precision": "bfloat16"},
                "float32": {},
            }
            for name, form in forms.items():
                leaf = table.clone().requires_grad_()
                forward = timed(lambda f=form: grid_encode(x, table, layout, backend="numba", **f))

                def both(f=form, leaf=leaf, c=cotangent, x=x, layout=layout):
                    leaf.grad = None
                    grid_encode(x, leaf, layout, backend="numba", **f).backward(c)

                rows.append(row(shape, kind, f"hashfield numba {name}", n, forward, timed(both)))
            index, weight = ready_made(x, layout)
            flat = index.reshape(-1, 8)
            bag = timed(
                lambda: torch.nn.functional.embedding_bag(
                    flat, table, mode="sum", per_sample_weights=weight.reshape(-1, 8)
                ), 5, 1,
            )  # fmt: skip
            rows.append(row(shape, kind, "torch embedding_bag, indices given", n, bag, None))
            grad = torch.zeros_like(table)
            terms = (weight[..., None] * cotangent.reshape(n, n_levels, 1, n_features)).reshape(-1, n_features)
            add = timed(lambda: grad.index_add_(0, index.reshape(-1), terms), 3, 1)
            rows.append(row(shape, kind, "torch index_add_, indices given (backward)", n, None, add))
            if not options.skip_slow:
                m = 2**14
                leaf = table.clone().requires_grad_()
                few, g = x[:m], cotangent[:m]
                slow = timed(lambda: reference.grid_encode(few, table, layout, "linear", "float32"), 3, 1)

                def slow_both(leaf=leaf, few=few, g=g, layout=layout):
                    leaf.grad = None
                    reference.grid_encode(few, leaf, layout, "linear", "float32").backward(g)

                rows.append(row(shape, kind, "plain torch (our reference)", m, slow, timed(slow_both, 3, 1)))
                rows.extend(fast_ngp(shape, kind, x[: 2**16], n_levels, n_features))
            rows.extend(dr_jit(shape, kind, x, layout))
        print(f"{shape}: limit of this run: gather 8 B {limits['gather8_s'] * 1e9:.2f} ns, read-modify-write 16 B "
              f"{limits['scatter16_s'] * 1e9:.2f} ns per entry; 8 corners x {n_levels} levels = "
              f"{limits['gather8_s'] * 8e9 * n_levels:.0f} and {limits['scatter16_s'] * 8e9 * n_levels:.0f} ns a point")  # fmt: skip
        for r in rows:
            if r["shape"] == shape:
                r["gather_limit_ns"] = round(limits["gather8_s"] * 8e9 * n_levels, 1)
                r["scatter_limit_ns"] = round(limits["scatter16_s"] * 8e9 * n_levels, 1)
    for r in rows:
        print(
            f"{r['shape']:14s} {r['points']:7s} {r['what']:45s} fwd {r['forward_ns']:>9} ns  fwd+bwd {r['both_ns']:>9} ns"
        )
    append("grid", rows)


def row(shape, kind, what, n, forward, both) -> dict:
    def ns(t):
        return "" if t is None else round(t["p50"] / n * 1e9, 1)

    return {"shape": shape, "points": kind, "what": what, "n": n, "forward_ns": ns(forward), "both_ns": ns(both)}


def dr_jit(shape: str, kind: str, x: torch.Tensor, layout: GridLayout) -> list[dict]:
    """Dr.Jit's hash grid on its LLVM backend, where it is installed and finds a libLLVM of the system."""
    try:
        import drjit as dr
        from drjit.llvm.ad import Array3f, Float
        from drjit.nn import HashGridEncoding
    except ImportError:
        print("Dr.Jit is not installed: pip install drjit==1.5.0 (and a libLLVM of the system)")
        return []
    if not dr.has_backend(dr.JitBackend.LLVM):
        print("Dr.Jit finds no libLLVM")
        return []
    dr.set_thread_count(torch.get_num_threads())
    encoder = HashGridEncoding(
        Float, 3, n_levels=layout.n_levels, n_features_per_level=layout.n_features_per_level, hashmap_size=2**19,
        base_resolution=16, per_level_scale=layout.per_level_scale,
    )  # fmt: skip
    points = Array3f(x.T.contiguous().numpy())
    dr.eval(points)

    def forward() -> None:
        with dr.suspend_grad():
            dr.eval(encoder(points))
        dr.sync_thread()

    def both() -> None:
        dr.enable_grad(encoder.data)
        dr.clear_grad(encoder.data)
        dr.backward(dr.sum(dr.sum(encoder(points), axis=0)))
        dr.eval(dr.grad(encoder.data))
        dr.sync_thread()

    return [row(shape, kind, f"Dr.Jit {dr.__version__} LLVM float32", len(x), timed(forward, 7, 2), timed(both, 7, 2))]


def fast_ngp(shape: str, kind: str, x: torch.Tensor, n_levels: int, n_features: int) -> list[dict]:
    """fast-ngp's encoder, where it is installed."""
    try:
        from fast_ngp.encoding.multi_hash_enc import MultiresHashEncoding
    except ImportError:
        print("fast-ngp is not installed: pip install --no-deps fast-ngp==0.1.0")
        return []
    import inspect

    names = inspect.signature(MultiresHashEncoding.__init__).parameters
    values = {"n_levels": n_levels, "num_levels": n_levels, "L": n_levels, "F": n_features, "T": 2**19,
              "n_features_per_level": n_features, "features_per_level": n_features, "level_dim": n_features,
              "log2_hashmap_size": 19, "base_resolution": 16, "N_min": 16, "finest_resolution": 2048, "N_max": 2048}  # fmt: skip
    try:
        encoder = MultiresHashEncoding(**{k: v for k, v in values.items() if k in names})
        forward = timed(lambda: encoder(x), 3, 1)

        def both():
            encoder.zero_grad()
            encoder(x).sum().backward()

        return [row(shape, kind, "fast-ngp 0.1.0", len(x), forward, timed(both, 3, 1))]
    except Exception as error:  # a rival that does not run is reported, not hidden
        print(f"fast-ngp does not run here: {type(error).__name__}: {error}; parameters {list(names)}")
        return []


if __name__ == "__main__":
    main()
