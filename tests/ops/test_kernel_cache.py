"""Compiled kernels lie in the user's own folder, named by all that decides them; a forced path is obeyed or refused."""

import copy
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.codegen import JITCodeLibrary

import hashfield
from hashfield.errors import ConfigError
from hashfield.geometry.grid_layout import GridLayout

if os.name != "posix":
    pytest.skip("folder modes are POSIX's", allow_module_level=True)

from hashfield.kernels.numba_cpu import common, target
from hashfield.kernels.numba_cpu.grid_encode import grid_encoder

PACKAGE = Path(hashfield.__file__).parent

SCRIPT = """
import os
os.umask(0)
import torch
from hashfield import ops
from hashfield.kernels.numba_cpu import common
x = torch.nn.functional.normalize(torch.randn(9, 3), dim=1)
a, b = (ops.spherical_harmonics(x, degree=4, backend=k) for k in ("numba", "reference"))
assert float((a - b).abs().max()) < 1e-5
import hashfield
print(common._CACHE)
print(common._CACHE_USABLE, common.is_cache_warm(), hashfield.__file__)
"""


def run(cache: Path, source: Path = PACKAGE.parent, **environment: str) -> list[str]:
    """Compile and run one kernel in a fresh process; the lines it prints."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "PYTHONPATH": str(source),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HASHFIELD_CACHE": str(cache),
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split("\n")


def test_package_that_cannot_be_written_to(tmp_path: Path) -> None:
    """Kernels go to the cache, which is the user's alone, and nothing into the package's folder."""
    source, cache = tmp_path / "site", tmp_path / "cache"
    shutil.copytree(PACKAGE, source / "hashfield", ignore=shutil.ignore_patterns("__pycache__"))
    folders = [source, *(p for p in source.rglob("*") if p.is_dir())]
    before = sorted(source.rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    try:
        name, state, *_ = run(cache, source)
        assert sorted(source.rglob("*")) == before  # root may write anywhere, so the mode alone proves nothing
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert state == f"True True {source / 'hashfield' / '__init__.py'}"
    assert Path(name).parent == cache
    assert Path(name).name == common.cache_folder().name  # the same in every process, wherever the package lies
    assert stat.S_IMODE(Path(name).stat().st_mode) == 0o700
    assert [p.name for p in cache.iterdir()] == [Path(name).name]
    assert any(Path(name).rglob("*.nbc"))


def test_works_without_a_usable_cache(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run(blocked)[1].startswith("False False")
    assert blocked.read_text() == "not a folder"


def test_open_folder_is_closed_and_a_stranger_s_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr(common, "_CACHE", folder)
    assert common._usable_cache()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(common.os, "getuid", lambda: folder.stat().st_uid + 1)
    assert not common._usable_cache()


def test_folder_is_named_by_all_that_decides_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASHFIELD_CACHE", str(tmp_path))
    own = common.cache_folder()
    assert own == common.cache_folder() and own.parent == tmp_path
    names = {own}
    features = target.host_features()
    changes = [
        (common, "LANES", 2 * common.LANES),
        (common, "PATH", "another"),
        (common, "host_features", lambda: {**features, "another": True}),
        (common.numba, "__version__", "0.0"),
        (common.llvmlite, "__version__", "0.0"),
    ]
    for owner, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            names.add(common.cache_folder())
    copy = tmp_path / "sources"
    shutil.copytree(Path(common.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(common, "__file__", str(copy / "common.py"))
    assert common.cache_folder() == own  # where the package lies does not matter
    with (copy / "simd.py").open("a") as file:  # a file that no kernel is defined in
        file.write("# changed\n")
    names.add(common.cache_folder())
    assert len(names) == 2 + len(changes)


def test_folder_of_the_user_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if sys.platform == "darwin":
        pytest.skip("the macOS folder does not depend on the environment")
    monkeypatch.delenv("HASHFIELD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert common.cache_folder().parent == tmp_path / "hashfield"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert common.cache_folder().parent == tmp_path / ".cache" / "hashfield"


_AVX2 = {"avx2": True, "fma": True}
_AVX512 = dict.fromkeys(("avx512f", "avx512vl", "avx512bw", "avx512dq"), True)


@pytest.mark.parametrize(
    ("features", "asked", "path"),
    [
        ({**_AVX2, **_AVX512}, "", "avx512"),
        ({**_AVX2, **_AVX512}, "AVX512", "avx512"),
        ({**_AVX2, **_AVX512}, "scalar", "scalar"),
        (_AVX2, "", "avx2"),
        ({**_AVX2, "avx512f": True}, "", "avx2"),
        ({"neon": True}, "", "simd128"),
        ({"neon": True}, "scalar", "scalar"),
    ],
)
def test_path_is_the_best_or_the_one_asked_for(
    features: dict[str, bool], asked: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "host_features", lambda: features)
    monkeypatch.setenv("HASHFIELD_CPU", asked)
    assert target._chosen_path() == path


@pytest.mark.parametrize(
    ("cpu", "asked", "has_tiles", "paths"),
    [
        ("znver4", "", False, ("avx512_bf16", "avx512", "avx2", "scalar")),
        ("znver5", "", False, ("avx512_bf16", "avx512", "avx2", "scalar")),
        ("sapphirerapids", "", True, ("amx", "avx512", "avx512_bf16", "avx2", "scalar")),
        ("sapphirerapids", "", False, ("avx512", "avx512_bf16", "avx2", "scalar")),
        ("cooperlake", "avx512_bf16", False, ("avx512", "avx512_bf16", "avx2", "scalar")),
    ],
)
def test_pairs_of_bfloat16_are_used_where_they_are_fast(
    cpu: str, asked: str, has_tiles: bool, paths: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = {**_AVX2, **_AVX512, "avx512bf16": True, "amx-tile": has_tiles, "amx-bf16": has_tiles}
    monkeypatch.setattr(target, "host_features", lambda: features)
    monkeypatch.setattr(target.llvm, "get_host_cpu_name", lambda: cpu)
    monkeypatch.setattr(target, "_may_use_tiles", lambda: has_tiles)
    monkeypatch.setattr(target, "pairs_pay", target.pairs_pay.__wrapped__)  # past its cache
    monkeypatch.setenv("HASHFIELD_CPU", asked)
    monkeypatch.delenv("HASHFIELD_AMX", raising=False)
    assert target.available_paths() == paths
    assert target._chosen_path() == (asked or paths[0])


@pytest.mark.parametrize(
    ("features", "asked", "message"),
    [
        (_AVX2, "avx512", "HASHFIELD_CPU=avx512: this CPU offers only avx2, scalar"),
        ({}, "avx2", "HASHFIELD_CPU=avx2: this CPU offers only scalar"),
        (_AVX2, "pentium", "HASHFIELD_CPU=pentium: expected one of "),
    ],
)
def test_path_that_cannot_run_is_refused(
    features: dict[str, bool], asked: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "host_features", lambda: features)
    monkeypatch.setenv("HASHFIELD_CPU", asked)
    with pytest.raises(ConfigError) as caught:
        target._chosen_path()
    assert str(caught.value).startswith(message)


def test_only_long_unused_folders_of_other_versions_go(tmp_path: Path) -> None:
    old, fresh, foreign = (tmp_path / name for name in ("kernels-0123", "kernels-4567", "photos"))
    for folder in (old, fresh, foreign):
        folder.mkdir()
        (folder / "file").write_text("x")
    for folder in (old, foreign):
        os.utime(folder, (0, 0))
    common._forget_old_caches(tmp_path)
    assert not old.exists() and fresh.exists() and (foreign / "file").exists()


def test_copies_of_a_layout_need_no_kernels_of_their_own() -> None:
    """What a model holds is a copy, whose arrays may be written to; to the compiler that is another type."""
    layout = GridLayout(n_levels=3, n_features_per_level=2, log2_hashmap_size=8)
    assert not layout.scales.flags.writeable
    table = np.zeros(layout.n_entries * 2, np.float32)
    kinds = {numba.typeof(grid_encoder(given, table, "linear")) for given in (layout, copy.deepcopy(layout))}
    assert len(kinds) == 1


def _double(x, thread, threads):
    x[thread] = 2 * x[thread]


@common.inline
def _twice(x):
    return 2 * x


@common.part
def _added(x, y):
    return _twice(x) + y


@common.overloaded
def _half(x):
    return lambda x: 0.5 * x


def _of_three_kinds(x, thread, threads):
    x[thread] = _half(_added(x[thread], 1.0))


def test_machine_code_is_made_of_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what they call, it would never run, and making it took as long again as everything else."""
    made = []
    finalize = JITCodeLibrary._finalize_specific
    monkeypatch.setattr(
        JITCodeLibrary, "_finalize_specific", lambda library: (made.append(library.name), finalize(library))
    )
    compiled = common.njit(_of_three_kinds, nogil=True, error_model="numpy")  # as `kernel`, but never from the cache
    x = np.array([3.0, 5.0])
    compiled(x, 1, 2)
    assert x.tolist() == [3.0, 5.5]
    assert made == ["_of_three_kinds"]


@pytest.mark.skipif(not common._CACHE_USABLE, reason="no folder for compiled kernels can be written here")
def test_processes_that_compile_at_once_never_get_each_others_code() -> None:
    """One process writes its code between the index and the code of another, whose index it had read before that."""
    one, two = (common.kernel(_double)._cache._cache_file for _ in range(2))
    write, read = one._save_data, two._load_index

    def late(name: str, data: int) -> None:
        two._load_index = dict  # as it was before the first wrote its own
        two.save("of two", 2)
        two._load_index = read
        write(name, data)

    one._save_data = late
    one.save("of one", 1)
    assert two.load("of two") == 2 and one.load("of one") in (None, 1)
    two.flush()
