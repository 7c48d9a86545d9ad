"""Writers of pickles and PyTorch files, honest and hostile, opcode by opcode; no PyTorch needed."""

from __future__ import annotations

import pickle
import struct
import zipfile

MARK, STOP, BUILD, REDUCE = b"(", b".", b"b", b"R"


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    return b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else pickle.dumps(value, 2)[2:-1]


def block(raw):
    return b"B" + struct.pack("<I", len(raw)) + raw


def named(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def together(*items):
    return MARK + b"".join(items) + b"t"


def call(function, *arguments):
    return function + together(*arguments) + REDUCE


def mapping(**items):
    return b"}" + MARK + b"".join(text(key) + value for key, value in items.items()) + b"u"


def listed(*items):
    return b"]" + MARK + b"".join(items) + b"e"


def program(body):
    return b"\x80\x02" + body + STOP


def numpy_dtype(code, order="<"):
    state = together(number(3), text(order), b"N", b"N", b"N", number(-1), number(-1), number(0))
    return call(named("numpy", "dtype"), text(code), b"\x89", b"\x88") + state + BUILD


def numpy_array(shape, dtype, content, fortran=False):
    start = call(
        named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), together(number(0)), block(b"b")
    )
    sides = together(*(number(side) for side in shape))
    return start + together(number(1), sides, dtype, b"\x88" if fortran else b"\x89", content) + BUILD


def storage(kind, key, count):
    return together(text("storage"), named("torch", kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(stored, shape, strides, offset=0):
    def sides(values):
        return together(*(number(value) for value in values))

    arguments = (
        stored,
        number(offset),
        sides(shape),
        sides(strides),
        b"\x89",
        call(named("collections", "OrderedDict")),
    )
    return call(named("torch._utils", "_rebuild_tensor_v2"), *arguments)


def torch_file(path, body, storages=None, root="archive/", compression=zipfile.ZIP_STORED, **entries):
    """A zip-format checkpoint: the pickle's body, and the raw content of every storage."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}data.pkl", program(body))
        for name, content in entries.items():
            archive.writestr(f"{root}{name}", content)
        for key, content in (storages or {}).items():
            archive.writestr(f"{root}data/{key}", content)
    return path


# Each would call something if the reader ran what a pickle asks for. `touch` is the command's argument.
def hostile_bodies(touch):
    command = text(f"touch {touch}")
    write = text(f"open({str(touch)!r}, 'w')")
    return {
        "os.system": call(named("os", "system"), command),
        "posix.system": call(named("posix", "system"), command),
        "subprocess": call(named("subprocess", "getoutput"), command),
        "eval": call(named("builtins", "eval"), write),
        "exec of Python 2": call(named("__builtin__", "execfile"), write),
        "getattr chain": call(call(named("builtins", "getattr"), named("os", "path"), text("os")), command),
        "INST": MARK + command + b"ios\nsystem\n",
        "OBJ": MARK + named("os", "system") + command + b"o",
        "NEWOBJ": named("subprocess", "Popen") + together(command) + b"\x81",
        "STACK_GLOBAL": text("os") + text("system") + b"\x93" + together(command) + REDUCE,
        "attribute of ours": call(named("numpy", "core.multiarray.os.system"), command),
        "dotted name": call(named("paddle_vheat.weights.safe_pickle", "pickle.loads"), block(program(b"N"))),
        "NumPy's loader": call(named("numpy", "load"), command),
        "in a state": mapping(
            a=call(named("collections", "OrderedDict")) + call(named("os", "system"), command) + BUILD
        ),
    }
