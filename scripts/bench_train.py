"""The Python half of bench-train.sh: the same training steps in PyTorch, and the table of what was measured.

    bench_train.py torch MODEL RECIPE OUT [--device D] [--dtype f32|bf16] [--tf32] [--steps N] [--threads N]
    bench_train.py table OURS THEIRS …

Reads the float directory of `qat init` and the recipe that qat reads: equal weights, tokens, losses, clipping, AdamW. PyTorch runs
eagerly with the fastest operations it has: scaled_dot_product_attention, rms_norm, cross_entropy, the fused AdamW.
"""

import argparse
import json
import resource
import statistics
import sys
import time
import tomllib
from pathlib import Path

# Steps before the clock starts, as in src/bench/training.rs.
WARM_UP = 3
# Losses of the same steps may differ by this share: sums of a different order, amplified by ten steps of training.
TOLERANCE = {"f32": 2e-5, "tf32": 2e-3, "bf16": 2e-2}


class RandomTokens:
    """The ids of train/src/trainer/measure.rs."""

    def __init__(self, seed, vocab):
        self.state, self.vocab = seed, vocab

    def batch(self, rows, context):
        windows = []
        for _ in range(rows):
            window = []
            for _ in range(context + 1):
                self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
                window.append((self.state >> 33) % self.vocab)
            windows.append(window)
        return windows


def rope(x, cos, sin):
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


class Llama:
    """Llama with a tied head; a function of a dictionary of weights."""

    def __init__(self, config, ctx, device, dtype):
        self.c = config
        self.hd = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        frequency = config["rope_theta"] ** (-torch.arange(0, self.hd, 2, dtype=torch.float64) / self.hd)
        angle = torch.arange(ctx, dtype=torch.float64)[:, None] * frequency
        self.cos, self.sin = (f(angle).to(device, dtype) for f in (torch.cos, torch.sin))

    def loss(self, w, inputs, targets):
        c, (b, t) = self.c, inputs.shape
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        norm = lambda x, name: F.rms_norm(x, (c["hidden_size"],), w[name].to(x.dtype), c["rms_norm_eps"])
        split = lambda y, n: y.view(b, t, n, self.hd).transpose(1, 2)
        x = F.embedding(inputs, w["model.embed_tokens.weight"])
        for i in range(c["num_hidden_layers"]):
            at = lambda name: w[f"model.layers.{i}.{name}.weight"]
            h = norm(x, f"model.layers.{i}.input_layernorm.weight")
            q, k = split(F.linear(h, at("self_attn.q_proj")), heads), split(F.linear(h, at("self_attn.k_proj")), kv_heads)
            v = split(F.linear(h, at("self_attn.v_proj")), kv_heads)
            q, k = rope(q, self.cos, self.sin), rope(k, self.cos, self.sin)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
            x = x + F.linear(a.transpose(1, 2).reshape(b, t, -1), at("self_attn.o_proj"))
            h = norm(x, f"model.layers.{i}.post_attention_layernorm.weight")
            x = x + F.linear(F.silu(F.linear(h, at("mlp.gate_proj"))) * F.linear(h, at("mlp.up_proj")), at("mlp.down_proj"))
        logits = F.linear(norm(x, "model.norm.weight"), w["model.embed_tokens.weight"])
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def run_torch(args):
    recipe = tomllib.loads(Path(args.recipe).read_text())
    config = json.loads((Path(args.model) / "config.json").read_text())
    rows, ctx, optim = recipe["train"]["batch"], recipe["data"]["ctx"], recipe["optim"]
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    stored = load_file(Path(args.model) / "model.safetensors")
    w = {name: t.to(args.device, torch.float32).requires_grad_() for name, t in stored.items()}
    matrices, rest = [p for p in w.values() if p.dim() > 1], [p for p in w.values() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": optim["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=optim["lr"], betas=optim["betas"], eps=optim["eps"], fused=True)
    model = Llama(config, ctx, args.device, dtype)
    tokens = RandomTokens(recipe["seed"], config["vocab_size"])
    sync = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    losses, seconds = [], []
    for step in range(WARM_UP + args.steps):
        ids = torch.tensor(tokens.batch(rows, ctx), device=args.device)
        sync()
        began = time.perf_counter()
        # f32 masters; with bf16 each weight is rounded once a step, as under autocast.
        seen = {name: p.to(dtype) for name, p in w.items()} if dtype != torch.float32 else w
        loss = model.loss(seen, ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), optim["clip"])
        adam.step()
        adam.zero_grad(set_to_none=True)
        losses.append(loss.item())
        sync()
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - began)
    report = {
        "torch": torch.__version__, "dtype": "tf32" if args.tf32 else args.dtype, "losses": losses, "samples_seconds": seconds,
        "tokens_per_second": rows * ctx / statistics.median(seconds),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device_bytes": torch.cuda.max_memory_allocated() if args.device == "cuda" else None,
    }
    Path(args.out).write_text(json.dumps(report))


def table(paths):
    """One row a pair of files; of several pairs of one recipe the faster of each side, because others may have used the machine."""
    best = {}
    for ours, theirs in zip(paths[::2], paths[1::2]):
        ours, theirs = (json.loads(Path(p).read_text()) for p in (ours, theirs))
        apart = max(abs(a / b - 1) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
        if apart > TOLERANCE[theirs["dtype"]]:
            sys.exit(f"{ours['recipe']}: losses differ by {apart:.1e} of their size: not the same computation\n"
                     f"  qat   {ours['losses']}\n  torch {theirs['losses']}")
        row = best.setdefault(ours["recipe"], [ours, theirs, apart])
        for side, found in enumerate((ours, theirs)):
            if found["tokens_per_second"] > row[side]["tokens_per_second"]:
                row[side] = found
        row[2] = max(row[2], apart)
    print("| recipe | device | parameters | tokens/step | qat tokens/s | PyTorch tokens/s | ratio | qat memory | PyTorch memory | losses apart |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, (ours, theirs, apart) in best.items():
        memory = [side["device_bytes"] or side["peak_rss_bytes"] for side in (ours, theirs)]
        rates = [side["tokens_per_second"] for side in (ours, theirs)]
        print(f"| {name} | {ours['device'].split()[0]}, {theirs['dtype']} | {ours['parameters'] / 1e6:.1f}M | {ours['tokens_per_step']:,} "
              f"| {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[0] / rates[1]:.2f} "
              f"| {memory[0] / 2**20:,.0f} MiB | {memory[1] / 2**20:,.0f} MiB | {apart:.0e} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["table"]:
        table(sys.argv[2:])
        sys.exit()
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["torch"])
    parser.add_argument("model")
    parser.add_argument("recipe")
    parser.add_argument("out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    run_torch(parser.parse_args())
