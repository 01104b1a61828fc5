"""hashfield.tcnn: real callers, second derivatives, and what the module costs over the op beneath it.

    python benchmarks/tcnn.py [--only callers|second|overhead] [--points 65536] [--plain-points 8192]

Every caller of tests/tcnn/callers.py runs at `--points` random points, forward, and forward with backward to parameters and
inputs, and the same model in plain torch (our reference, at `--plain-points`, in nanoseconds a point as the others). Where
nerfstudio is installed its torch fallbacks stand beside the models they stand for.
"""

import argparse
import sys
from pathlib import Path

import torch
from common import append, cpu_model, other_load, timed
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.tcnn.callers import CALLERS, grid, mlp

from hashfield import tcnn
from hashfield.ops.backend import use_backend
from hashfield.ops.encoded_mlp import encoded_mlp
from hashfield.ops.grid_encode import grid_encode

NERFACTO = grid(16, 19, 16, 1.3819128800)


def both(module, x: torch.Tensor):
    """A call that goes forward and backward, to parameters and inputs."""

    def run():
        module.zero_grad(set_to_none=True)
        own = x.detach().requires_grad_()
        module(own).float().sum().backward()

    return run


def ns(seconds: dict[str, float], n: int) -> float:
    return round(seconds["p50"] / n * 1e9, 1)


def callers(n: int, n_plain: int) -> list[dict]:
    rows = []
    for caller in CALLERS:
        module = caller.make()
        x = torch.rand(n, caller.n_input)
        few = x[:n_plain]
        with torch.no_grad():
            forward = timed(lambda m=module, x=x: m(x), 5, 1)
        step = timed(both(module, x), 5, 1)
        with use_backend("reference"):
            with torch.no_grad():
                plain_forward = timed(lambda m=module, x=few: m(x), 1, 0)
            # A gradient of the whole table weighs more on few points, for both alike: compared at the same number.
            plain = timed(both(module, few), 1, 1)
        alike = timed(both(module, few), 3, 1)
        row = {"what": caller.name, "params": caller.n_params, "forward_ns": ns(forward, n), "both_ns": ns(step, n),
               "both_few_ns": ns(alike, n_plain), "plain_forward_ns": ns(plain_forward, n_plain),
               "plain_both_ns": ns(plain, n_plain), "n": n, "n_few": n_plain}  # fmt: skip
        rows.append(row)
        print(f"{caller.name:28s} {caller.n_params:>11,d} fwd {row['forward_ns']:8.1f}  fwd+bwd {row['both_ns']:8.1f}   "
              f"at {n_plain}: {row['both_few_ns']:8.1f}, plain torch fwd {row['plain_forward_ns']:9.1f}  "
              f"fwd+bwd {row['plain_both_ns']:9.1f}", flush=True)  # fmt: skip
    return rows + nerfstudio(n)


def nerfstudio(n: int) -> list[dict]:
    """nerfstudio's torch hash encoding with its network, where the package is installed."""
    try:
        from nerfstudio.field_components.mlp import MLPWithHashEncoding
    except ImportError:
        print("nerfstudio is not installed: its torch fallback is left out")
        return []
    model = MLPWithHashEncoding(
        num_levels=16, min_res=16, max_res=2048, log2_hashmap_size=19, features_per_level=2, num_layers=2, layer_width=64,
        out_dim=16, activation=nn.ReLU(), out_activation=None, implementation="torch",
    )  # fmt: skip
    x = torch.rand(n, 3)
    with torch.no_grad():
        forward = timed(lambda: model(x), 3, 1)
    step = timed(both(model, x), 3, 1)
    print(f"{'nerfstudio torch, as row 1':28s} {'':11s} fwd {ns(forward, n):8.1f}  fwd+bwd {ns(step, n):8.1f}")
    return [{"what": "nerfstudio torch fallback of 1", "forward_ns": ns(forward, n), "both_ns": ns(step, n), "n": n}]


def eikonal(call, x: torch.Tensor, clear):
    """A step with an eikonal term: the value, its gradient, and backward through both."""

    def run():
        clear()
        own = x.detach().requires_grad_()
        value = call(own)[:, :1]
        (gradient,) = torch.autograd.grad(value.sum(), own, create_graph=True)
        ((gradient.norm(dim=1) - 1).square().mean() + value.abs().mean()).backward()

    return run


def second(n: int, n_plain: int) -> list[dict]:
    rows = []
    smooth = NERFACTO | {"interpolation": "Smoothstep"}
    for name in ("grid with a torch network", "grid with a tcnn network"):
        if name.endswith("torch network"):
            encoding = tcnn.Encoding(3, smooth)
            head = nn.Sequential(nn.Linear(32, 64), nn.Softplus(beta=100), nn.Linear(64, 1))
            model: nn.Module = nn.Sequential(encoding, head)
        else:
            model = tcnn.NetworkWithInputEncoding(3, 1, smooth, mlp(64, 1))
        times = {}
        for backend, count in ((None, n), ("reference", n_plain)):
            x = torch.rand(count, 3)

            def first(x=x, model=model):
                model.zero_grad(set_to_none=True)
                own = x.detach().requires_grad_()
                model(own).abs().mean().backward()

            step = eikonal(model, x, lambda model=model: model.zero_grad(set_to_none=True))
            if backend is None:
                times["fast"] = ns(timed(first, 7, 2), count), ns(timed(step, 7, 2), count)
            else:
                with use_backend("reference"):
                    times["plain"] = ns(timed(first, 1, 1), count), ns(timed(step, 1, 1), count)
        (a, b), (c, d) = times["fast"], times["plain"]
        print(
            f"{name:28s} plain step {a:.0f} ns, eikonal step {b:.0f} ns ({b / a:.2f} times); plain torch {c:.0f} and {d:.0f} ns"
        )
        rows.append({"what": f"eikonal, {name}", "first_ns": a, "eikonal_ns": b, "plain_first_ns": c,
                     "plain_eikonal_ns": d, "n": n, "n_few": n_plain})  # fmt: skip
    return rows


def overhead() -> list[dict]:
    rows = []
    encoding = tcnn.Encoding(3, NERFACTO)
    layout = encoding.native_tcnn_module.layouts[0]
    table = encoding.params.detach().view(-1, 2).clone().requires_grad_()
    model = tcnn.NetworkWithInputEncoding(3, 16, NERFACTO, mlp(64, 1))
    matrices = [m.detach().clone().requires_grad_() for m in model.matrices()]
    own = model.native_tcnn_module.parts(model.params)[1][0].detach().clone().requires_grad_()

    def clear(*tensors):
        for tensor in tensors:
            tensor.grad = None

    def bare_grid(x):
        clear(table)
        grid_encode(x, table, layout).sum().backward()

    def bare_network(x):
        clear(own, *matrices)
        encoded_mlp(x, own, matrices, layout).sum().backward()

    def module_step(module):
        def run(x):
            clear(module.params)
            module(x).sum().backward()

        return run

    pairs = (("Encoding", module_step(encoding), bare_grid, lambda x: encoding(x), lambda x: grid_encode(x, table, layout)),
             ("NetworkWithInputEncoding", module_step(model), bare_network, lambda x: model(x),
              lambda x: encoded_mlp(x, own, matrices, layout)))  # fmt: skip
    for name, ours, bare, ours_forward, bare_forward in pairs:
        for n in (256, 2**12, 2**16):
            x = torch.rand(n, 3)
            repeats = 41 if n < 2**16 else 15
            a, b = timed(lambda o=ours, x=x: o(x), repeats), timed(lambda o=bare, x=x: o(x), repeats)
            with torch.no_grad():
                c, d = (
                    timed(lambda x=x, f=ours_forward: f(x), repeats),
                    timed(lambda x=x, f=bare_forward: f(x), repeats),
                )
            row = {"what": f"overhead of {name}", "n": n, "module_us": round(a["p50"] * 1e6, 1),
                   "op_us": round(b["p50"] * 1e6, 1), "module_forward_us": round(c["p50"] * 1e6, 1),
                   "op_forward_us": round(d["p50"] * 1e6, 1)}  # fmt: skip
            rows.append(row)
            print(f"{name:26s} {n:6d} points: fwd+bwd {row['module_us']:9.1f} us, op {row['op_us']:9.1f} us "
                  f"({row['module_us'] / row['op_us'] * 100 - 100:+.1f} %); forward {row['module_forward_us']:8.1f} and "
                  f"{row['op_forward_us']:8.1f} us ({row['module_forward_us'] / row['op_forward_us'] * 100 - 100:+.1f} %)")  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("callers", "second", "overhead"))
    parser.add_argument("--points", type=int, default=2**16)
    parser.add_argument("--plain-points", type=int, default=2**13)
    options = parser.parse_args()
    print(f"{cpu_model()}; others keep {other_load():.2f} cores busy", flush=True)
    rows = []
    if options.only in (None, "overhead"):
        rows += overhead()
    if options.only in (None, "second"):
        rows += second(options.points, options.plain_points)
    if options.only in (None, "callers"):
        rows += callers(options.points, options.plain_points)
    append("tcnn", rows)


if __name__ == "__main__":
    main()
