"""`kernels_*.cpp`, compiled by the compiler of the machine and called without copies.

Legend: B streams, H hidden, U units computed, n computed edges of a node, M rows, V words.

torch's own operations read and write memory once each; between two products of the cell there are
a dozen. One pass does them all. Where no compiler is found torch's operations run instead, as on
another device than a CPU where `triton_support.py` has no kernels, with the same values
(`mixture_cpu.py`, `derived.py`, `loss.py`, `dynamic.py`, `matmul.py`). As with torch's own threads,
a process that has used them must not be forked and go on using them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rnnnas.processes import clear_scratch, scratch_folder

SOURCES = tuple(  # what takes a compiler the longest comes first
    Path(__file__).with_name(name)
    for name in (
        "kernels_unroll.cpp", "kernels_window.cpp", "kernels_window_tangent.cpp",
        "kernels_vocabulary.cpp", "kernels_derived.cpp", "kernels_tangent.cpp",
        "kernels_mixture.cpp", "kernels_rows.cpp", "kernels_dynamic.cpp", "kernels_products.cpp",
        "kernels_window.h", "kernels_blocks.h", "kernels_tiles.h", "kernels.h",
    )
)  # fmt: skip
SWITCH = "RNNNAS_KERNELS"  # "off" keeps them from being compiled and used
# -fno-math-errno and -fno-trapping-math let roots and comparisons become vector instructions;
# nothing here may reorder a sum but where the source says so, nor assume that there are no NaNs.
FLAGS = (
    "-O3", "-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno",
    "-fno-trapping-math",
)  # fmt: skip
COLUMNS = ("mass", "tanh", "relu", "sigmoid", "identity")  # of an edge's shares and sums
PART = 16  # streams, or rows of logits, whose sums are taken together
COMPILE_SECONDS = 300  # that a compiler may take: a few are usual
KEPT_SECONDS = 30 * 24 * 3600  # that libraries of other versions stay in the cache
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}
_SIGNATURES = {  # i: int64, p: pointer, d: double; each ends with the number of threads
    "mix": "iiiippppp", "mix_back": "iiiippppppp", "reach": "iiiipppp", "normalise": "iiiidppppp",
    "normalise_back": "iiipppp", "losses": "iipppdppi", "evaluate": "iiiiippppppppp",
    "gate": "iiiippppppp", "gate_back": "iiippppppp", "mean": "iiiippppp", "spread": "iiiipppppp",
    "dual_mix": "iiiipppppppp", "dual_mix_back": "iiiippppppppppppp",
    "dual_normalise": "iiiidppppppppp", "dual_normalise_back": "iiipppppppp",
    "dual_losses": "iipppppdp", "vocabulary": "iiiippppdpppp",
    "unroll": "iiiiiiippppppppppp", "unroll_back": "iiiiiipppppppppppppp",
    "window": "iiiiiippppdppppppp", "window_back": "iiiiipppppppppppppppp",
    "dual_window": "iiiiiipppppdpppppppppppp",
    "dual_window_back": "iiiiipppppppppppppppppppppp",
    "multiply": "iiiiipiipidpii", "learn": "ipppdddp", "learn_rows": "iiippppdddpp",
}  # fmt: skip
# What ONEDNN_MAX_CPU_ISA says where it does not forbid tiles: they are forbidden here as there.
_WITH_TILES = ("", "DEFAULT", "ALL", "AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16", "AVX10_1_512_AMX")
_running: set[subprocess.Popen[str]] = set()  # compilers
_TYPES = {"i": ctypes.c_int64, "p": ctypes.c_void_p, "d": ctypes.c_double}


class Built(NamedTuple):
    """The compiled library, or why there is none."""

    library: ctypes.CDLL | None
    reason: str


def switched_off() -> bool:
    """Whether the user wants no kernels, here or on a device."""
    return os.environ.get(SWITCH, "").lower() in ("off", "0", "no")


@functools.cache
def built() -> Built:
    """Compile, unless that was done before on a machine like this one; takes a few seconds."""
    if switched_off():
        return Built(None, f"{SWITCH} says so")
    if platform.system() != "Linux":
        return Built(None, "they are compiled on Linux only")
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        return Built(None, f"CXX cannot be split into words: {error}")
    compiler = named or next(
        ([name] for name in ("g++", "c++", "clang++") if shutil.which(name)), []
    )
    if not compiler:
        return Built(None, "no C++ compiler was found (g++, c++ or clang++)")
    try:
        library = _loaded(compiler)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"{compiler[0]} failed"]
        return Built(None, next((line for line in lines if "error" in line), lines[-1]))
    except subprocess.TimeoutExpired as error:
        return Built(None, f"{compiler[0]} did not end within {error.timeout:.0f} seconds")
    except (OSError, ValueError, RuntimeError) as error:  # the latter where there is no home
        return Built(None, str(error))
    for name, signature in _SIGNATURES.items():
        for kind in _NAMES.values():
            function = getattr(library, f"{name}_{kind}", None)
            if function is None:  # some never round
                continue
            function.restype = None
            function.argtypes = [*(_TYPES[letter] for letter in signature), ctypes.c_int]
    return Built(library, "")


def _loaded(compiler: list[str]) -> ctypes.CDLL:
    """The library; compiled once more where the file that is there cannot be loaded.

    Loading runs what is in the file: `_compiled` lets none through that is not as it was written.
    """
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except OSError:
        return ctypes.CDLL(str(_compiled(compiler, anew=True)))


def _compiled(compiler: list[str], anew: bool = False) -> Path:
    """The library's file. Its name stands for all that it depends on, this processor too.

    Raises:
        OSError: where the compiler cannot be run or the file not be written.
        subprocess.CalledProcessError: where it does not compile.
    """
    sources = [path.read_bytes() for path in SOURCES]
    flags = [*FLAGS, f"-DPART={PART}", *_for_processor()]
    version = _run([*compiler, "--version"])
    key = repr((sources, compiler, flags, _openmp(), version, _processor())).encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnnnas"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_own(cache)
    clear_scratch(cache)
    target = cache / f"kernels-{hashlib.sha256(key).hexdigest()[:16]}.so"
    if anew or not intact(target):
        with scratch_folder(cache) as folder:
            fresh = folder / target.name
            _build([*compiler, *flags], folder, fresh)
            digest = folder / "digest"
            digest.write_text(_digest(fresh))
            for path in (fresh, digest):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            # Whole or not at all: others may be doing the same. Where their library meets our
            # digest, whoever comes next compiles it again.
            fresh.replace(target)
            digest.replace(_digest_path(target))
            if not intact(target):  # another process replaced one of the two meanwhile
                raise OSError(f"{target} was changed while it was compiled")
        for old in cache.glob("kernels-*.so"):
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                old.unlink(missing_ok=True)
                _digest_path(old).unlink(missing_ok=True)
    return target


def _build(compiler: list[str], folder: Path, target: Path) -> None:
    """Compile and link: the files side by side, since a user waits for it at the first command."""
    units = [path for path in SOURCES if path.suffix == ".cpp"]

    def compiled(unit: Path) -> str:
        made = str(folder / f"{unit.stem}.o")
        _run([*compiler, "-c", str(unit), "-o", made])
        return made

    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        parts = [pool.submit(compiled, unit) for unit in units]
        try:
            objects = [part.result() for part in parts]
        except BaseException:
            for part in parts:
                part.cancel()
            while not all(part.done() for part in parts):  # some may be just about to start
                for child in [*_running]:
                    _end(child)
                time.sleep(0.02)
            raise
    _run([*compiler, "-shared", *objects, "-o", str(target), *_openmp()])


def check_own(folder: Path) -> None:
    """Raises OSError where another user could put a library into `folder`, which we would run."""
    about = folder.stat()
    if about.st_uid != os.geteuid():
        raise OSError(f"the cache {folder} belongs to another user")
    if about.st_mode & 0o022:
        raise OSError(f"others may write to the cache {folder} (chmod go-w would help)")


def intact(library: Path) -> bool:
    """Whether a library is there, a file of the user's own, as it was when it was compiled."""
    try:
        about = library.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
            return False
        return _digest_path(library).read_text() == _digest(library)
    except (OSError, ValueError):
        return False


def _digest_path(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(command: list[str]) -> str:
    """What a command prints. It and its own processes end when it takes too long."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
    ) as child:  # fmt: skip
        _running.add(child)
        try:
            out, said = child.communicate(timeout=COMPILE_SECONDS)
        except BaseException:
            _end(child)
            raise
        finally:
            _running.discard(child)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, out, said)
    return out


def _end(child: subprocess.Popen[str]) -> None:
    """End a compiler, and its own processes."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _processor() -> str:
    """What the processor can do, as far as the system tells; native code is made for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _for_processor() -> list[str]:
    if platform.machine() != "x86_64":
        return ["-mcpu=native"]
    wide = ["-mprefer-vector-width=512"] if "avx512f" in _processor().split() else []
    return ["-march=native", *wide]


def _openmp() -> list[str]:
    """torch's own thread library, so that there is one set of threads and not two."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(found[0])] if found else []


def has_bfloat16() -> bool:
    """Whether this machine's processor multiplies bfloat16 in hardware."""
    supported: bool = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return supported


def usable(*tensors: Tensor, low: bool = False) -> bool:
    """Whether there are kernels for these tensors, which must be of one type.

    low: for products rounded to bfloat16, which have float32 about them.
    """
    like = tensors[0]
    types = (torch.float32,) if low else (torch.float32, torch.float64)
    if any(t.device.type != "cpu" or t.dtype != like.dtype for t in tensors):
        return False
    return like.dtype in types and built().library is not None


@functools.cache
def tiled() -> bool:
    """Whether there are kernels whose products in bfloat16 are made tile by tile (AMX)."""
    library = built().library
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITH_TILES
    return allowed and library is not None and bool(library.has_tiles())


def lanes(kind: torch.dtype) -> int:
    """Units of a block of the kernels that make a whole window; only where there are kernels."""
    library = built().library
    assert library is not None
    return int(getattr(library, f"lanes_{_NAMES[kind]}")())


def dense(tensor: Tensor, *shape: int) -> Tensor:
    """The tensor as a kernel takes it.

    Raises:
        ValueError: where its shape is another: a kernel would read beyond it.
    """
    if tensor.shape != shape:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} instead of {shape}")
    return tensor.contiguous()


def function(name: str, product: torch.dtype) -> Callable[..., None]:
    """A kernel for products of this type; only where they are `usable`.

    Its arguments are numbers and the addresses of dense tensors (`multiply` asks how they lie). Of
    the cell, with s, t states
    and sums (B, H), shares (n, 5) as COLUMNS says, product (n, B, 2U) = [c, z]:

    mix: n, B, H, U, sources, shares, product, states, → total Σ_e m s + σ(c) (Σ_f p f(z) - m s).
    mix_back: n, B, H, U, sources, shares, product, states, gradient of the total, gradients, dots:
        the product becomes its gradient; adds to the states' gradients what reaches them directly,
        and to dots (parts of the streams, n, 5) the inner products of the shares' own gradients.
    reach: n, B, H, U, sources, back (n, B, U), mask (B, U) or 0, gradients: adds back times mask.
    normalise: B, H, U, roll, epsilon, raw, mask or 0, → state, rstd (H), inner: the first U units
        times the mask. The state's units are rolled by `roll`, as torch.roll does.
    normalise_back: B, H, roll, gradient, state, rstd, → the gradient of raw.

    window: T, B, H, N, whether states and products are kept, whether products are made of tiles;
        the first edge of every state, s0 first, and the end; the edges' sources, addresses of the
        matrices (H, 2H), shares, epsilon; from_x (T, B, 2H), h (B, H), mask or 0 → states (N+1, B,
        H) and rstd (N+1, H) of every step, products (E+1, B, 2H) in their own order, and results
        (T, B, H). H of these but the results is up to whole blocks of `lanes`. Edge 0 leads from
        the step before to s0.
    window_back: T, B, H, N, tiles; the tables, from_x, h and mask as before, states, rstd, results,
        products, gradient of the results, → gradients of from_x, h and, unless 0, of the nodes'
        matrices; dots (blocks, E+1, 5), as of `mix_back`.

    The same with tangents (`tangent_elementwise.py`), where d is the gradient of a tangent and dd
    that of a value, and every d. argument is the tangent or the dd of the one before it:

    dual_mix: n, B, H, U, sources, shares, product, d., states, d., → total, d.
    dual_mix_back: n, B, H, U, sources, shares, product, d., states, d., d and dd of the totals,
        d and dd of the states, which are added to, → dense (n, B, 2U): d of the products; pair
        (n, B, 4U): dd beside d; dots (parts of the streams, n, 5), added to: dd of the shares.
    dual_normalise: B, H, U, roll, epsilon, raw, d., mask or 0, → state, d., rstd, slant (H), inner
        (B, U), pair (B, 2U): the tangent beside the state, both times the mask.
    dual_normalise_back: B, H, roll, d, dd, state, d., rstd, slant, → d and dd of raw.
    dual_window: T, B, H, N, whether states and products are kept, tiles; the tables of `window`,
        addresses of the matrices' directions, epsilon; from_x, h, mask or 0, d. of from_x → states,
        d., rstd, slant, products, d., results, d.
    dual_window_back: T, B, H, N, tiles; the tables and directions, from_x, h, mask and d. of from_x
        as before, states, d., rstd, slant, results, d., products, d., gradients of the results and
        of their d., → gradients of from_x and of its d.; dots (blocks, E+1, 5): dd of the shares.
    dual_losses: M, V, logits, d., bias, d., targets, scale, → the derivative of every row's nats
        (M) in float64; logits and d. become scale times d and dd of the logits.

    Of a derived cell, with product (B, k, 2H) of the k nodes of one source, which the first state
    gets from_x (B, 2H) added to, and 0 for what is not there:

    gate: B, H, k, elements between two nodes' states, operations (as COLUMNS counts), product,
        from_x or 0, source, mask or 0, → states, and times the mask (k, B, H) or 0.
    gate_back: B, H, k, operations, product, from_x or 0, source, gradients of the nodes' states
        (k, B, H), gradient of the source, gradient (B, 2H) or 0: the product becomes its gradient,
        which is also written unrounded where there is from_x; adds to the source's gradient what
        reaches it directly.
    mean: B, H, outputs, elements between two states, outputs (slots, rising), states, mask or 0,
        → their mean, and times the mask or 0.
    spread: B, H, states, outputs, outputs (slots, rising), gradient of the result, onward, back,
        mask or 0, → gradients (N+1, B, H) of the states: gradient + onward + back times mask,
        shared by the outputs, else 0. onward becomes 0.

    unroll: T, B, H, levels, outputs, whether states and products are kept, whether products are
        made of tiles; the first slot of every level and the end; sources, operations (as COLUMNS
        counts), outputs, addresses of the matrices (H, 2H); from_x (T, B, 2H), h (B, H), mask or 0
        → states (N+1, T, B, H) and products (N+1, T, B, 2H), of one step where they are not kept,
        and results (T, B, H).
    unroll_back: T, B, H, levels, outputs, tiles; the tables, from_x, h and mask as before, states,
        results, products, gradient of the results, → gradients of from_x and h; the products
        become their gradients.

    Of either cell:

    evaluate: T, B, H, levels, outputs; the first node of every level and the end, the first state
        being node 0; sources, operations (as COLUMNS counts), outputs, addresses of the matrices
        (H, 2H); from_x (T, B, 2H), h (B, H), → states (N+1, B, H), results (T, B, H).
    Of the decoder, of weights, and of matrices whatever they are:

    losses: M, V, logits (without bias), bias, targets, scale, → nats (M) in float64, and if the
        last argument is 1: scale times the gradient, in the logits' place, its sum over the rows
        added to by_word (V).
    vocabulary: M, V, H, whether gradients are wanted; x (M, H), weights (V, H), bias, targets,
        scale, → nats (M) in float64 and, where wanted, scale times the gradients of x and, unless
        their addresses are null, of weights and bias. Where there are tiles only.
    multiply: address of a library's product with one thread (CBLAS, 64-bit integers), M, K, W;
        a (M, K): whether columns are dense, address, elements between rows or columns; b (K, W)
        likewise; what the former result counts, → result (M, W), elements between its rows; parts
        of the longer side, each of which one thread makes.
    learn: elements, gradient g, trained weights, rms, lr, epsilon, relative, → weights w, which
        move by -lr g / (rms + epsilon) + min(relative rms, 1) (trained - w).
    learn_rows: M, V, D, gradient (M, V), x (M, D), trained (V, D), rms, lr, epsilon, relative,
        → weights (V, D), whose gradient is gradientᵀ x; and gradient times what they were, (M, D).
    """
    library = built().library
    assert library is not None
    result: Callable[..., None] = getattr(library, f"{name}_{_NAMES[product]}")
    return result
