"""The runtimes that exports are for, each as: the logits of ids, of which the first are read at once and the others one by one,
as when text is written; and the ids of a text.

Knows nothing of qat. `exact` runtimes compute in f32 from the file's own values; the others are as users have them, with
activations rounded to 8 bits or 16-bit floats.
"""

import contextlib
import os
from pathlib import Path

import numpy as np

CONTEXT = 256

# Nothing from the network, no GPU, and one thread each: threads that wait for each other by spinning cost more than such models.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}


def parts(ids, prompt):
    """The first `prompt` ids, then one after the other."""
    return [ids[:prompt], *([id] for id in ids[prompt:])]


class Transformers:
    """transformers on PyTorch, in the type of the files: f32."""

    def __init__(self, folder, exact):
        import torch
        from transformers import AutoModelForCausalLM

        self.torch, self.folder = torch, folder
        self.model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()

    def logits(self, ids, prompt):
        logits, past = [], None
        with self.torch.no_grad():
            for part in parts(ids, prompt):
                out = self.model(self.torch.tensor([part]), past_key_values=past, use_cache=True)
                past = out.past_key_values
                logits.append(out.logits[0].float().numpy())
        return np.concatenate(logits)


def transformers_encode(folder):
    """text → ids, by transformers' tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


class Mlx:
    """mlx-lm on the processor; exact: the same weights, scales and biases widened to f32."""

    def __init__(self, folder, exact):
        import mlx.core as mx
        import mlx_lm

        self.mx = mx
        self.model, self.tokenizer = mlx_lm.load(str(folder))
        if exact:
            self.model.set_dtype(mx.float32)

    def logits(self, ids, prompt):
        from mlx_lm.models.cache import make_prompt_cache

        past = make_prompt_cache(self.model)
        read = lambda part: np.array(self.model(self.mx.array([part]), cache=past).astype(self.mx.float32))[0]
        return np.concatenate([read(part) for part in parts(ids, prompt)])


def mlx_encode(folder):
    """text → ids, by mlx-lm's tokenizer."""
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(Path(folder))
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@contextlib.contextmanager
def _unpacked(llama):
    """Models loaded here keep their matrices as the file has them: another layout of them can't be given to a BLAS."""
    made = llama.llama_model_default_params

    def params():
        params = made()
        params.use_extra_bufts = False
        return params

    llama.llama_model_default_params = params
    try:
        yield
    finally:
        llama.llama_model_default_params = made


class LlamaCpp:
    """llama.cpp. Exact: all tokens at once, so that it decodes matrices and lets the BLAS of sgemm/ multiply; as shipped: few at
    a time, with its own kernels and activations rounded to 8 bits."""

    def __init__(self, folder, exact):
        import llama_cpp

        self.exact = exact
        ubatch = CONTEXT if exact else 16
        path = next(Path(folder).glob("*.gguf"))
        kept = _unpacked(llama_cpp.llama_cpp) if exact else contextlib.nullcontext()
        with kept:
            # Keys and values in f32 (type 0), as qat has them here.
            self.model = llama_cpp.Llama(
                str(path), n_ctx=CONTEXT, n_batch=CONTEXT, n_ubatch=ubatch, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, type_k=0, type_v=0, use_mmap=not exact
            )

    def logits(self, ids, prompt):
        # It uses a BLAS from 32 tokens on.
        for part in [ids] if self.exact else parts(ids, prompt):
            self.model.eval(part)
        return np.array(self.model.scores[: len(ids)])


def llama_cpp_encode(folder):
    """text → ids, by llama.cpp's own tokenizer from the file's metadata."""
    import llama_cpp

    model = llama_cpp.Llama(str(next(Path(folder).glob("*.gguf"))), vocab_only=True, verbose=False)
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=True)


class OnnxRuntime:
    """ONNX Runtime for the prompt, onnxruntime-genai to go on from it; a graph whose model takes float activations computes in f32."""

    def __init__(self, folder, exact):
        import onnxruntime
        import onnxruntime_genai

        self.genai = onnxruntime_genai
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"), options, providers=["CPUExecutionProvider"])
        config = onnxruntime_genai.Config(str(folder))
        config.overlay('{"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}')
        self.model = onnxruntime_genai.Model(config)

    def logits(self, ids, prompt):
        params = self.genai.GeneratorParams(self.model)
        params.set_search_options(max_length=len(ids) + 1, do_sample=False)
        generator = self.genai.Generator(self.model, params)
        logits = []
        for part in parts(ids, prompt):
            generator.append_tokens(np.array([part], np.int32))
            # onnxruntime-genai keeps the last row of a prompt alone; the graph gives all of them.
            last = np.asarray(generator.get_output("logits"))[0, -1:]
            logits.append(np.concatenate([self.prompt_logits(part)[:-1], last]) if len(part) > 1 else last)
        return np.concatenate(logits).astype(np.float32)

    def prompt_logits(self, ids):
        feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        for past in self.session.get_inputs():
            if past.name.startswith("past_key_values"):
                feeds[past.name] = np.zeros((1, past.shape[1], 0, past.shape[3]), types[past.type])
        return self.session.run(["logits"], feeds)[0][0]


def onnx_encode(folder):
    """text → ids, by onnxruntime-genai's own tokenizer."""
    import onnxruntime_genai

    tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(folder)))
    return lambda text: tokenizer.encode(text).tolist()


RUNTIMES = {"transformers": Transformers, "mlx-lm": Mlx, "llama.cpp": LlamaCpp, "onnxruntime": OnnxRuntime}
ENCODERS = {"transformers": transformers_encode, "mlx-lm": mlx_encode, "llama.cpp": llama_cpp_encode, "onnxruntime": onnx_encode}
