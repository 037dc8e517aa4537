//! The dispatch list of a model on Metal, the bytes that it moves, and the time that these take at the bandwidths of
//! Apple's chips.
//!
//! Runs nothing and needs no GPU. Invariant: the list is the one that a session on a Mac runs.

use std::fmt;

use comfy_table::Table;
use qat_infer::{
    cpu::KvType,
    metal::{Access, Argument, BufferId, Call, Constant, Decoder, List, Options, PASS, Pass, Script, Tail},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::chips::{CHIPS, Chip};
use crate::table;

/// A list and what it works with.
#[derive(Debug)]
pub struct Dispatches {
    options: Options,
    tokens: usize,
    list: List,
    buffers: Vec<(String, u64)>,
}

/// Sums over a list.
#[derive(Debug, Clone, Copy, Serialize)]
struct Total {
    dispatches: usize,
    barriers: usize,
    bytes_read: u64,
    bytes_written: u64,
}

impl Dispatches {
    /// The list of the `tokens` that fill a context, and of the choice of the next.
    pub fn of(decoder: &Decoder, context: usize, kv: KvType, tokens: usize) -> anyhow::Result<Self> {
        let options = Options::new(context).with_kv(kv);
        let script = Script::new(decoder, options)?;
        let most = PASS.min(context);
        if !(1..=most).contains(&tokens) {
            anyhow::bail!("--tokens {tokens}: want 1 to {most}, what a pass takes at once");
        }
        let list = script.list(Pass::Body { tokens, past: context - tokens, tail: Tail::Argmax })?;
        let buffers = script.buffers().iter().map(|buffer| (buffer.name.clone(), buffer.bytes)).collect();
        Ok(Self { options, tokens, list, buffers })
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let Total { dispatches, barriers, bytes_read, bytes_written } = self.total();
        let predicted = |chip: &Chip| json!({"chip": chip.name, "gb_per_s": chip.gb_per_s, "ms": chip.milliseconds(bytes_read + bytes_written)});
        json!({
            "context": self.options.context,
            "kv": self.options.kv.to_string(),
            "tokens": self.tokens,
            "past": self.options.context - self.tokens,
            "dispatches": self.list.calls().iter().map(|call| self.call_json(call)).collect::<Vec<_>>(),
            "buffers": self.buffers.iter().map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect::<Vec<_>>(),
            "working_set_bytes": self.working_set(),
            "total": {"dispatches": dispatches, "barriers": barriers, "bytes_read": bytes_read, "bytes_written": bytes_written},
            "predicted": CHIPS.iter().map(predicted).collect::<Vec<_>>(),
        })
    }

    fn total(&self) -> Total {
        let calls = self.list.calls();
        Total {
            dispatches: calls.len(),
            barriers: calls.iter().filter(|call| call.barrier).count(),
            bytes_read: calls.iter().map(|call| call.bytes_read).sum(),
            bytes_written: calls.iter().map(|call| call.bytes_written).sum(),
        }
    }

    fn working_set(&self) -> u64 {
        self.buffers.iter().map(|(_, bytes)| bytes).sum()
    }

    fn calls(&self) -> Table {
        let header = ["#", "layer", "what", "kernel", "groups", "threads", "read", "written", "barrier"];
        let mut found = table::with_header(&header, &[2, 3, 8]);
        for (at, call) in self.list.calls().iter().enumerate() {
            found.add_row([
                at.to_string(),
                call.layer.map_or_else(|| "–".to_owned(), |layer| layer.to_string()),
                call.label.clone(),
                call.launch.kernel.to_owned(),
                grid(call.launch.groups),
                grid(call.launch.threads),
                table::bytes(call.bytes_read),
                table::bytes(call.bytes_written),
                if call.barrier { "yes" } else { "" }.to_owned(),
            ]);
        }
        found
    }

    fn sums(&self) -> Table {
        let total = self.total();
        let mut found = table::lines();
        let mut row = |name: &str, value: String| {
            found.add_row([name.to_owned(), value]);
        };
        let past = self.options.context - self.tokens;
        row("pass", format!("{} token(s) after {past}, keys and values in {}", self.tokens, self.options.kv));
        let layers = self.list.calls().iter().filter_map(|call| call.layer).max().map_or(0, |last| last + 1);
        let in_layers = self.list.calls().iter().filter(|call| call.layer.is_some()).count();
        row(
            "dispatches",
            format!(
                "{}, of which {} a layer; {} barriers",
                total.dispatches,
                in_layers / layers.max(1),
                total.barriers
            ),
        );
        row("bytes read", table::bytes(total.bytes_read));
        row("bytes written", table::bytes(total.bytes_written));
        let cache: u64 =
            self.buffers.iter().filter(|(name, _)| name.contains("of layer")).map(|(_, n)| n).sum();
        row(
            "working set",
            format!(
                "{} for a context of {}, of which keys and values {}",
                table::bytes(self.working_set()),
                self.options.context,
                table::bytes(cache)
            ),
        );
        found
    }

    fn predictions(&self) -> Table {
        let Total { bytes_read, bytes_written, .. } = self.total();
        let rate = if self.tokens == 1 { "tokens/s, at most" } else { "prompt tokens/s, at most" };
        let mut found = table::with_header(&["chip", "memory GB/s", "predicted ms", rate], &[0]);
        for chip in CHIPS {
            let ms = chip.milliseconds(bytes_read + bytes_written);
            let rate = 1e3 * self.tokens as f64 / ms;
            found.add_row([
                chip.name.to_owned(),
                chip.gb_per_s.to_string(),
                format!("{ms:.3}"),
                format!("{rate:.0}"),
            ]);
        }
        found
    }

    fn caveat(&self) -> &'static str {
        match self.tokens {
            1 => {
                "A prediction, not a measurement: bytes moved / published memory bandwidth. Caches make it better; the time of\n\
                 a dispatch, arithmetic and bandwidth that is not reached make it worse."
            }
            _ => {
                "A prediction, not a measurement: bytes moved / published memory bandwidth. Of a prompt it is a bound only:\n\
                 products of many tokens are limited by arithmetic, which is not counted."
            }
        }
    }

    fn call_json(&self, call: &Call) -> Value {
        let Call { label, layer, launch, bindings, barrier, bytes_read, bytes_written } = call;
        let constant = |constant: &Constant| match *constant {
            Constant::Bool(value) => json!(value),
            Constant::U32(value) => json!(value),
            Constant::F32(value) => json!(value),
        };
        let binding = |argument: &Argument| match argument {
            Argument::Buffer { span, access } => {
                let BufferId(buffer) = span.buffer;
                let access = match access {
                    Access::Read => "read",
                    Access::Write => "write",
                    Access::ReadWrite => "read and write",
                };
                json!({"buffer": buffer, "offset": span.offset, "bytes": span.bytes, "access": access})
            }
            Argument::Bytes(bytes) => json!({"inline": bytes}),
        };
        let constants = launch.constants.iter().map(|(place, value)| (place.to_string(), constant(value)));
        let bindings = bindings.iter().map(|b| (b.place.to_string(), binding(&b.argument)));
        json!({
            "label": label, "layer": layer, "library": launch.library, "kernel": launch.kernel,
            "constants": constants.collect::<serde_json::Map<_, _>>(),
            "groups": launch.groups, "threads": launch.threads,
            "bindings": bindings.collect::<serde_json::Map<_, _>>(),
            "barrier": barrier, "bytes_read": bytes_read, "bytes_written": bytes_written,
        })
    }
}

impl fmt::Display for Dispatches {
    /// For people: the list, its sums, and what they mean.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (calls, sums, predictions) = (self.calls(), self.sums(), self.predictions());
        write!(f, "{calls}\n\n{sums}\n\n{predictions}\n\n{}", self.caveat())
    }
}

/// A size of a grid without its trailing ones.
fn grid(size: [u32; 3]) -> String {
    let len = size.iter().rposition(|n| *n != 1).map_or(1, |last| last + 1);
    size[..len].iter().map(u32::to_string).collect::<Vec<_>>().join("×")
}
