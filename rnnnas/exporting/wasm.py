"""The matrix-vector kernels of the page: WebAssembly with 128-bit SIMD, assembled here.

Two functions over the page's own memory, rows in steps of four, columns (k) in steps of eight:

- `f32(w, x, y, rows, k)`: y = W x, all float32.
- `i8(w, scale, x, y, rows, k, unit)`: W int8, x int16: y[r] = (Σ_j W[r, j] x[j]) scale[r] unit.
  Sums are exact in int32 as long as 127 k max|x| < 2^31.

Sources: WebAssembly core specification 2.0, sections 5.4 (instructions) and 5.5 (modules).
"""

from __future__ import annotations

I32, F32, V128 = 0x7F, 0x7D, 0x7B
_SIMD = 0xFD

# Instruction → opcode, its fixed immediate bytes (alignment, offset) after it.
_PLAIN = {
    "end": b"\x0b", "i32.add": b"\x6a", "i32.sub": b"\x6b", "i32.shl": b"\x74",
    "i32.gt_s": b"\x4a", "f32.mul": b"\x94", "f32.add": b"\x92", "f32.convert_i32_s": b"\xb2",
    "loop": b"\x03\x40",  # a block without results
    "f32.load": b"\x2a\x02\x00", "f32.store": b"\x38\x02\x00",
}  # fmt: skip
_VECTOR = {
    "v128.load": (0x00, b"\x00\x00"), "v128.load8x8_s": (0x01, b"\x00\x00"),
    "v128.zero": (0x0C, bytes(16)),  # v128.const
    "i32x4.add": (0xAE, b""), "i32x4.dot_i16x8_s": (0xBA, b""),
    "f32x4.add": (0xE4, b""), "f32x4.mul": (0xE6, b""),
}  # fmt: skip
_INDEXED = {"local.get": b"\x20", "local.set": b"\x21", "local.tee": b"\x22", "br_if": b"\x0d"}
_LANES = {"i32x4.extract_lane": 0x1B, "f32x4.extract_lane": 0x1F}


def _unsigned(value: int) -> bytes:
    """LEB128 (section 5.2.2)."""
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _signed(value: int) -> bytes:
    out = bytearray()
    while True:
        low, value = value & 0x7F, value >> 7
        done = (value == 0 and not low & 0x40) or (value == -1 and low & 0x40)
        out.append(low if done else low | 0x80)
        if done:
            return bytes(out)


def _assemble(lines: list[str], names: dict[str, int]) -> bytes:
    """The bytes of instructions, one a line: `local.get x`, `i32.const 8`, `i32.add`."""
    out = b""
    for line in lines:
        op, *rest = line.split()
        if op in _PLAIN:
            out += _PLAIN[op]
        elif op in _VECTOR:
            code, immediate = _VECTOR[op]
            out += bytes([_SIMD]) + _unsigned(code) + immediate
        elif op in _INDEXED:
            out += _INDEXED[op] + _unsigned(names[rest[0]] if rest[0] in names else int(rest[0]))
        elif op in _LANES:
            out += bytes([_SIMD, _LANES[op], int(rest[0])])
        else:
            assert op == "i32.const", op
            out += b"\x41" + _signed(int(rest[0]))
    return out


def _moved(name: str, amount: list[str]) -> list[str]:
    return [f"local.get {name}", *amount, "i32.add", f"local.set {name}"]


def _kernel(packed: bool) -> tuple[list[str], dict[str, int], bytes, bytes]:
    """Instructions, local names, parameter types and declarations of one of the kernels."""
    parameters = ["w", "scale", "x", "y", "rows", "k", "unit"] if packed else [
        "w", "x", "y", "rows", "k"
    ]  # fmt: skip
    rows = [f"w{i}" for i in range(1, 4)]
    sums = [f"sum{i}" for i in range(4)]
    names = {n: i for i, n in enumerate([*parameters, "j", "at", *rows, *sums, "xs"])}
    wide = "local.get k" if packed else "local.get k\ni32.const 2\ni32.shl"  # bytes a row
    step = 8 if packed else 4  # columns at a time
    code = ["loop"]
    for i, name in enumerate(rows):
        code += [f"local.get {'w' if i == 0 else rows[i - 1]}", *wide.split("\n"), "i32.add",
                 f"local.set {name}"]  # fmt: skip
    for name in sums:
        code += ["v128.zero", f"local.set {name}"]
    code += ["local.get k", "local.set j", "local.get x", "local.set at", "loop"]
    code += ["local.get at", "v128.load", "local.set xs", *_moved("at", ["i32.const 16"])]
    for pointer, name in zip(["w", *rows], sums, strict=True):
        code += [f"local.get {pointer}"]
        if packed:
            code += ["v128.load8x8_s", "local.get xs", "i32x4.dot_i16x8_s"]
        else:
            code += ["v128.load", "local.get xs", "f32x4.mul"]
        code += [f"local.get {name}", "i32x4.add" if packed else "f32x4.add", f"local.set {name}"]
        code += _moved(pointer, [f"i32.const {8 if packed else 16}"])
    code += ["local.get j", f"i32.const {step}", "i32.sub", "local.tee j", "i32.const 0",
             "i32.gt_s", "br_if 0", "end"]  # fmt: skip
    for name in sums:
        lane, add = ("i32x4", "i32.add") if packed else ("f32x4", "f32.add")
        code += ["local.get y"]
        for i in range(4):
            code += [f"local.get {name}", f"{lane}.extract_lane {i}"] + ([add] if i else [])
        if packed:
            code += ["f32.convert_i32_s", "local.get scale", "f32.load", "f32.mul",
                     "local.get unit", "f32.mul"]  # fmt: skip
        code += ["f32.store", *_moved("y", ["i32.const 4"])]
        if packed:
            code += _moved("scale", ["i32.const 4"])
    # The last row's pointer has come to its end, where the next four rows begin.
    code += [f"local.get {rows[-1]}", "local.set w", "local.get rows", "i32.const 4", "i32.sub",
             "local.tee rows", "i32.const 0", "i32.gt_s", "br_if 0", "end", "end"]  # fmt: skip
    kinds = bytes([F32 if name == "unit" else I32 for name in parameters])
    declared = _unsigned(2) + _unsigned(5) + bytes([I32]) + _unsigned(5) + bytes([V128])
    return code, names, kinds, declared


def _section(number: int, content: bytes) -> bytes:
    return bytes([number]) + _unsigned(len(content)) + content


def _vector(items: list[bytes]) -> bytes:
    return _unsigned(len(items)) + b"".join(items)


def _name(text: str) -> bytes:
    return _unsigned(len(text)) + text.encode()


def kernels() -> bytes:
    """The module: it imports `page.memory` and exports `f32` and `i8`."""
    types, bodies = [], []
    for packed in (False, True):
        code, names, kinds, declared = _kernel(packed)
        types.append(b"\x60" + _unsigned(len(kinds)) + kinds + b"\x00")
        body = declared + _assemble(code, names)
        bodies.append(_unsigned(len(body)) + body)
    return (
        b"\0asm\x01\0\0\0"
        + _section(1, _vector(types))
        + _section(2, _vector([_name("page") + _name("memory") + b"\x02\x00\x01"]))
        + _section(3, _vector([b"\x00", b"\x01"]))
        + _section(7, _vector([_name("f32") + b"\x00\x00", _name("i8") + b"\x00\x01"]))
        + _section(10, _vector(bodies))
    )
