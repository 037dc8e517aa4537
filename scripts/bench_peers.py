"""The Python half of bench-peers.sh: a float directory of `qat init` as GGUF, and the table of what was measured.

Knows llama.cpp's `llama` architecture without biases or rope scaling, which is what the shapes of `qat init` are.
"""

import json
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import gguf
import numpy as np

# Below this share of the processors a comparison means little.
QUIET = 0.95


def tensors(path):
    """Name and numpy array of each tensor of a safetensors file in F16 or F32."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    header = 8 + int.from_bytes(data[:8].tobytes(), "little")
    for name, info in json.loads(data[8:header].tobytes()).items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        dtype = {"F16": np.float16, "F32": np.float32}[info["dtype"]]
        yield name, data[header + begin : header + end].view(dtype).reshape(info["shape"])


def interleaved(rows, heads):
    """Rows of q or k in the order of GGUF: the two halves of a head, which rotate together, row by row."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def convert(source, target):
    config = json.loads((Path(source) / "config.json").read_text())
    unsupported = [key for key in ("attention_bias", "mlp_bias", "rope_scaling") if config.get(key)]
    if config["model_type"] != "llama" or unsupported:
        sys.exit(f"{source}: want a llama without biases and rope scaling, found {config['model_type']} {unsupported}")
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, values in tensors(Path(source) / "model.safetensors"):
        if "q_proj" in name:
            values = interleaved(values, config["num_attention_heads"])
        if "k_proj" in name:
            values = interleaved(values, config["num_key_value_heads"])
        if values.ndim == 1:
            values = values.astype(np.float32)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Runs:
    """Every repetition of one model in one tool, over all rounds."""

    def __init__(self, prefix, tool):
        files = sorted(prefix.parent.glob(f"{prefix.name}.*.{tool}.json"))
        tests = [test for file in files for test in json.loads(file.read_text())]
        self.tests = {"pp": [t for t in tests if t["n_prompt"]], "tg": [t for t in tests if t["n_gen"]]}
        self.size = tests[0]["model_size"]

    def rates(self, kind):
        return [rate for test in self.tests[kind] for rate in test["samples_ts"]]

    def mean(self, kind):
        return statistics.fmean(self.rates(kind))

    def shown(self, kind):
        rates = self.rates(kind)
        return f"{statistics.fmean(rates):.1f} ± {statistics.stdev(rates) if len(rates) > 1 else 0:.1f}"


def spin(seconds):
    """The share of a processor that this process got while it wanted all of one."""
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds:
        pass
    return (time.process_time() - used) / (time.monotonic() - began)


def share(threads):
    """The least share of a processor that one of so many processes at once got."""
    with ProcessPoolExecutor(threads) as pool:
        return min(pool.map(spin, [1.0] * threads))


def busy(shares):
    """A line on what part of the machine was there before each round, and a warning if it was not all."""
    shares = [float(share) for share in shares]
    print("processors that were free for this, before each round: " + ", ".join(f"{share:.0%}" for share in shares))
    if min(shares) < QUIET:
        print("NOT A QUIET MACHINE: threads that wait for each other lose most when something else runs, so these ratios say "
              "little; stop what else is running and measure again")


def kv_bytes(reader, test):
    """Bytes of the peer's F16 KV cache in the middle of a generation."""
    number = lambda key: int(reader.fields[f"llama.{key}"].parts[-1][0])
    position = 2 * number("block_count") * number("attention.head_count_kv") * number("rope.dimension_count") * 2
    return position * (test["n_depth"] + (test["n_gen"] - 1) / 2)


def table(lines):
    """The table of pairs: a line has shape, name of the peer's type, own format, prefix of results, path of the GGUF."""
    pairs = [line.rstrip("\n").split("\t") for line in lines]
    runs = [(Runs(Path(pair[3]), "peer"), Runs(Path(pair[3]), "qat")) for pair in pairs]
    generated = [test for _, own in runs for test in own.tests["tg"]]
    triad, read = (max(t[f"{kind}_bytes_per_second"] for t in generated) for kind in ("triad", "read"))
    prompt, last = runs[0][1].tests["pp"][0], generated[0]
    header = ["shape", "format", "MiB", prompt["test"], last["test"], "pp ratio", "tg ratio", "MiB/token", "GB/s",
              "of triad", "of read"]
    rows, types = [], {}
    for (shape, kind, form, _, path), (peer, own) in zip(pairs, runs):
        reader = gguf.GGUFReader(path)
        types[Path(path).name] = Counter(tensor.tensor_type.name for tensor in reader.tensors)
        ratio = [f"{own.mean(kind) / peer.mean(kind):.2f}" for kind in ("pp", "tg")]
        peer_bytes = peer.size + kv_bytes(reader, last)
        own_bytes = own.tests["tg"][0]["bytes_per_token"]
        for name, of, bytes_per_token, ratios in (
            (f"llama.cpp {kind}", peer, peer_bytes, ["", ""]), (f"qat {form}", own, own_bytes, ratio),
        ):
            moved = bytes_per_token * of.mean("tg")
            rows.append([shape, name, f"{of.size / 2**20:.1f}", of.shown("pp"), of.shown("tg"), *ratios,
                         f"{bytes_per_token / 2**20:.1f}", f"{moved / 1e9:.1f}", f"{moved / triad:.0%}",
                         f"{moved / read:.0%}"])
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    line = lambda cells: "| " + " | ".join(
        cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(zip(cells, widths))) + " |"
    print(line(header))
    print("|" + "|".join("-" * (width + 1) + ("-" if at < 2 else ":") for at, width in enumerate(widths)) + "|")
    print("\n".join(map(line, rows)))
    count = len(runs[0][1].rates("tg"))
    print(f"\n{last['cpu_info']}, {last['n_threads']} threads, qat on {last['isa']}; mean ± standard deviation of {count} "
          f"repetitions; memory: triad {triad / 1e9:.1f} GB/s, read {read / 1e9:.1f} GB/s")
    for name, found in types.items():
        print(f"{name}: " + ", ".join(f"{count} tensors {kind}" for kind, count in found.most_common()))


def main():
    match sys.argv[1:]:
        case ["convert", source, target]:
            convert(source, target)
        case ["share", threads]:
            print(share(int(threads)))
        case ["table", *shares]:
            table(sys.stdin)
            busy(shares)
        case _:
            sys.exit("want: convert FLOAT_DIR GGUF, share THREADS, or table SHARE… < pairs")


# Processes of `share` read this file again.
if __name__ == "__main__":
    main()
