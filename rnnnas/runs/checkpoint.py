"""What a checkpoint may hold, plain values and tensors, and the digest that names it."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from rnnnas.errors import CheckpointError, check_no_pipe
from rnnnas.runs.files import RESTORE, unreadable, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

# What may lie in a checkpoint: these, tensors, and lists, tuples and mappings of them.
_Scalar: TypeAlias = "str | int | float | bool | bytes | None"
_SCALARS = (str, int, float, bool, bytes, type(None))


class _Plain:
    """Copies content to plain containers and CPU tensors, and refuses all else.

    Exact types only: NumPy's float64 is a float to `isinstance`, yet `weights_only` loading
    refuses it. Equal strings become one object and equal views of a tensor stay one tensor, so
    that the pickled form depends on values alone and tied weights are stored once.
    """

    def __init__(self) -> None:
        import torch

        self._tensor = torch.Tensor
        self._strided = torch.strided
        self._texts: dict[_Scalar, _Scalar] = {}
        # The source is kept beside its copy: while it lives, no other tensor gets its address.
        self._tensors: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def copy(self, value: Any, where: str = "content") -> Any:
        kind = type(value)
        if kind in (str, bytes):
            return self._texts.setdefault(value, value)
        if kind in _SCALARS:
            return value
        if isinstance(value, self._tensor):
            return self._copy_tensor(value, where)
        if kind is list:
            return [self.copy(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if kind is tuple:
            return tuple([self.copy(item, f"{where}[{i}]") for i, item in enumerate(value)])
        if isinstance(value, Mapping):
            for key in value:
                if type(key) not in (str, int):
                    raise TypeError(f"{where} has the key {key!r}: only str and int are stored")
            return {
                self.copy(key): self.copy(item, f"{where}[{key!r}]") for key, item in value.items()
            }
        raise TypeError(
            f"{where} is a {kind.__module__}.{kind.__qualname__}: "
            "a checkpoint holds plain values and tensors only"
        )

    def _copy_tensor(self, tensor: Tensor, where: str) -> Tensor:
        if tensor.layout != self._strided or tensor.is_meta or tensor.is_quantized:
            raise TypeError(f"{where} is a tensor that is not dense: it cannot be stored")
        key = (
            tensor.data_ptr(), tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(),
            tensor.is_conj(), tensor.is_neg(),
        )  # fmt: skip
        if key not in self._tensors:
            plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
            if plain.untyped_storage().nbytes() != plain.numel() * plain.element_size():
                plain = plain.clone()  # a view: torch.save would store all that it looks into
            self._tensors[key] = tensor, plain
        return self._tensors[key][1]


def content_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 in hex over nested plain values and tensors.

    It depends on types, values, dtypes and shapes; not on the order of a mapping's keys, nor on
    a tensor's device, strides or gradient flag.

    Raises:
        TypeError: where something else lies in the content, naming its place.
    """
    return plain_digest(plain_copy(content))


def plain_copy(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` in plain dicts, lists and tuples, with its tensors dense and on the CPU.

    Raises:
        TypeError: where something else lies in the content, naming its place.
    """
    if not isinstance(content, Mapping):
        raise TypeError(f"a checkpoint's content is a mapping, not a {type(content).__name__}")
    copy: dict[str, Any] = _Plain().copy(content)
    return copy


def plain_digest(plain: Any) -> str:
    """The digest of what `plain_copy` returned."""
    sha = hashlib.sha256()
    _feed(sha.update, plain)
    return sha.hexdigest()


def _feed(update: Callable[[Any], None], value: Any) -> None:
    """Every value as a tag, its length and its bytes: no two contents read alike."""
    if isinstance(value, dict):
        update(b"d%d:" % len(value))
        for key in sorted(value, key=lambda key: (type(key) is int, key)):
            _feed(update, key)
            _feed(update, value[key])
    elif isinstance(value, (list, tuple)):
        update((b"l%d:" if type(value) is list else b"t%d:") % len(value))
        for item in value:
            _feed(update, item)
    elif type(value) in _SCALARS:
        tag, data = _scalar_bytes(value)
        update(b"%c%d:" % (tag, len(data)))
        update(data)
    else:
        import torch

        update(f"T{value.dtype}{tuple(value.shape)}:".encode())
        update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))


def _scalar_bytes(value: _Scalar) -> tuple[bytes, bytes]:
    if value is None:
        return b"n", b""
    if isinstance(value, bool):
        return b"b", b"1" if value else b"0"
    if isinstance(value, int):
        return b"i", format(value, "x").encode()
    if isinstance(value, float):
        return b"f", struct.pack("<d", value)
    if isinstance(value, str):
        return b"s", value.encode("utf-8", "surrogatepass")
    return b"y", value


FORMAT = 1


_SEAL = b"rnnnas sha256 "


_SEAL_BYTES = len(_SEAL) + 64


def save_content(path: Path, content: Mapping[str, Any]) -> str:
    """Write `content` atomically as a checkpoint and return its digest.

    The same content in the same order gives the same bytes (with one version of torch).

    Raises:
        TypeError: where the content holds more than plain values and tensors.
        DiskError: where the file cannot be written; an older one is then untouched.
    """
    import torch

    plain = plain_copy(content)
    digest = plain_digest(plain)

    def write(file: BinaryIO) -> None:
        torch.save({"format": FORMAT, "digest": digest, "content": plain}, file)
        # The archive ends with the length of its comment, 0: announce the seal, then append it.
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", _SEAL_BYTES))
        file.seek(0)
        seal = _hash_bytes(file, None)
        file.seek(0, os.SEEK_END)
        file.write(_SEAL + seal)

    write_atomic(path, write)
    return digest


def _hash_bytes(file: BinaryIO, count: int | None) -> bytes:
    """SHA-256 in hex over the next `count` bytes of `file`, or all that follow."""
    sha = hashlib.sha256()
    while count is None or count > 0:
        block = file.read(1 << 20 if count is None else min(1 << 20, count))
        if not block:
            break
        sha.update(block)
        count = None if count is None else count - len(block)
    return sha.hexdigest().encode()


# What torch.load raises on files that are not its own, or are not safe to load.
_LOAD_ERRORS = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, AssertionError,
    OverflowError, RecursionError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error,
)  # fmt: skip


def load_content(path: Path) -> dict[str, Any]:
    """Read a checkpoint, every tensor on the CPU, after checking its seal and its digest.

    Raises:
        CheckpointError: where the file is missing, unreadable, truncated, altered in any bit,
            no checkpoint, or of another format.
    """
    import torch

    path = Path(path)
    try:
        check_no_pipe(path)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_seal(path, file, size)
            file.seek(0)
            stored = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, error) from error
    except _LOAD_ERRORS as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be decoded: {reason}", RESTORE) from error
    if not isinstance(stored, dict) or set(stored) != {"format", "digest", "content"}:
        raise CheckpointError(f"{path} is not a checkpoint of rnnnas", "give a best.pt")
    if stored["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {stored['format']!r}; this version reads format {FORMAT}",
            "use the version of rnnnas that wrote it (config.json beside it names it)",
        )
    content = stored["content"]
    try:
        digest = plain_digest(plain_copy(content))
    except TypeError as error:
        raise CheckpointError(f"{path} is not a checkpoint of rnnnas: {error}", RESTORE) from error
    if digest != stored["digest"] or not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: its content has another digest", RESTORE)
    return content


def _check_seal(path: Path, file: BinaryIO, size: int) -> None:
    """Refuse a file whose bytes are not those that were sealed."""
    start = file.read(4)
    file.seek(max(0, size - _SEAL_BYTES))
    seal = file.read(_SEAL_BYTES)
    if not seal.startswith(_SEAL):
        if start == b"PK\x03\x04":
            cause = f"{path} is truncated or damaged, or was not written by rnnnas"
        else:
            cause = f"{path} is not a checkpoint" + (": it is empty" if not size else "")
        raise CheckpointError(cause, f"give a best.pt or its run folder; if it was one, {RESTORE}")
    file.seek(0)
    if _hash_bytes(file, size - _SEAL_BYTES) != seal[len(_SEAL) :]:
        raise CheckpointError(f"{path} is damaged: its bytes have changed", RESTORE)
