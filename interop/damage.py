"""Damage to an export that a comparison of logits must notice: one code, one scale, one tensor in another's place.

Knows the containers (safetensors, GGUF, ONNX) well enough to find a code and a scale; runs nothing.
"""

import json
import struct

import numpy as np

KINDS = ["a code", "a scale", "two tensors"]
VICTIM = "model.layers.0.mlp.down_proj"
# Of the same shape and type.
SWAPPED = ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate_proj"]
# The highest bit of a byte is the highest of a code in every packed layout here but TQ1_0's, where it changes five codes.
HIGH_BIT = 0x80
# Where a block has its scale and its first code, in bytes, by GGUF type.
GGUF_BLOCKS = {"Q4_0": (0, 2), "Q8_0": (0, 2), "Q2_0": (0, 2), "TQ2_0": (64, 0), "TQ1_0": (52, 0)}


def damage(folder, target, kind):
    """Does the damage `kind` to the export in `folder`."""
    {"gguf": _gguf, "ollama": _gguf, "onnx": _onnx}.get(target, _safetensors)(folder, kind)


def _double(bytes_, dtype):
    """Twice the number: one more in the exponent."""
    step = {"F16": 0x400, "BF16": 0x80, "F32": 0x800000}[dtype]
    size = 4 if dtype == "F32" else 2
    value = int.from_bytes(bytes_[:size], "little") + step
    return value.to_bytes(size, "little")


def _safetensors(folder, kind):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])

    def span(name):
        first, last = header[name]["data_offsets"]
        return slice(8 + length + first, 8 + length + last)

    weight = span(f"{VICTIM}.weight")
    scale = next((name for name in (f"{VICTIM}.scales", f"{VICTIM}.weight_scale") if name in header), None)
    if kind == "two tensors":
        one, other = (span(f"{name}.weight") for name in SWAPPED)
        content[one], content[other] = content[other], content[one]
    elif kind == "a code" and scale:
        content[weight.start] ^= HIGH_BIT
    elif kind == "a code":
        # Floats: the sign of the largest weight of the first group.
        group = np.frombuffer(content, np.float32, 32, weight.start)
        content[weight.start + 4 * int(np.abs(group).argmax()) + 3] ^= HIGH_BIT
    elif scale:
        at, dtype = span(scale).start, header[scale]["dtype"]
        doubled = _double(content[at : at + 4], dtype)
        content[at : at + len(doubled)] = doubled
    else:
        group = 2 * np.frombuffer(content, np.float32, 32, weight.start)
        content[weight.start : weight.start + 128] = group.tobytes()
    path.write_bytes(content)


def _gguf(folder, kind):
    from gguf import GGUFReader

    reader = GGUFReader(next(folder.glob("*.gguf")), "r+")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    victim = tensors["blk.0.ffn_down.weight"]
    first = victim.data.reshape(-1)
    scale, code = GGUF_BLOCKS[victim.tensor_type.name]
    if kind == "two tensors":
        one, other = (tensors[f"blk.{layer}.ffn_gate.weight"].data for layer in (0, 1))
        kept = one.copy()
        one[:] = other
        other[:] = kept
    elif kind == "a code":
        first[code] ^= HIGH_BIT
    else:
        first[scale : scale + 2] = np.frombuffer(_double(bytes(first[scale : scale + 2]), "F16"), np.uint8)
    reader.data.flush()


def _onnx(folder, kind):
    import onnx
    from onnx import numpy_helper

    path = folder / "model.onnx"
    model = onnx.load(path)
    named = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    down, *_ = [node for node in products if "down" in node.name]
    gates = [node for node in products if "gate" in node.name]

    def change(name, how):
        values = numpy_helper.to_array(named[name]).copy()
        how(values.reshape(-1))
        named[name].CopyFrom(numpy_helper.from_array(values, name))

    def flip(values):
        values[0] ^= HIGH_BIT

    def double(values):
        values[0] *= 2

    if kind == "two tensors":
        gates[0].input[1], gates[1].input[1] = gates[1].input[1], gates[0].input[1]
    else:
        change(*((down.input[1], flip) if kind == "a code" else (down.input[2], double)))
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data")
