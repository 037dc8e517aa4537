//! What training by a recipe will take: memory by what it is for, disk, arithmetic and time.
//!
//! Knows no model that ships. Invariant: a time is printed only where something was measured or given.

use std::{collections::BTreeMap, fmt};

use qat_train::{
    device::Choice,
    forecast::{Device, Forecast, Part, Peak, Shapes},
    recipe::Plan,
    trainer,
};
use serde::Serialize;

use super::tiers;
use crate::{bench::duration, table};

/// The training. Sizes in bytes, times in seconds.
#[derive(Debug, Serialize)]
pub struct Training {
    device: &'static str,
    trained: u64,
    steps: usize,
    tokens_per_step: u64,
    memory: Memory,
    /// Of the process beside an NVIDIA GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    process_memory: Option<Memory>,
    /// The same recipe on a Mac's GPU.
    mac_bytes: u64,
    macs: Vec<&'static str>,
    checkpoint_bytes: u64,
    checkpoints: usize,
    /// The float start in f32, which is kept for exports.
    start_bytes: u64,
    /// The teacher's predictions on disk: of a token, and at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher_cache_bytes: Option<[u64; 2]>,
    flop: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Time>,
    not_counted: Vec<&'static str>,
}

/// Memory by what it is for.
#[derive(Debug, Serialize)]
struct Memory {
    total: u64,
    parts: BTreeMap<Part, u64>,
    mapped_files: u64,
    allocator: u64,
    beside: u64,
}

impl Memory {
    fn of(peak: &Peak, beside: u64) -> Self {
        let parts = Part::ALL.into_iter().zip(peak.parts).filter(|(_, bytes)| *bytes > 0).collect();
        let (mapped_files, allocator) = (peak.mapped, peak.allocator());
        Self { total: peak.taken + beside, parts, mapped_files, allocator, beside }
    }
}

/// How long it takes.
#[derive(Debug, Serialize)]
struct Time {
    seconds: f64,
    tokens_per_second: f64,
    /// Where that is from.
    from: &'static str,
}

/// Where a time is to come from.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// Nowhere.
    None,
    /// Tokens per second are given.
    Rate(f64),
    /// Steps of a smaller student, here.
    Probe,
}

/// The device by the name that it has on the command line.
pub fn device(name: &str) -> anyhow::Result<Device> {
    Ok(match name.parse::<Choice>()? {
        Choice::Auto => match Choice::Auto.open()?.device {
            found if found.is_metal() => Device::Metal,
            found if found.is_cuda() => Device::Cuda,
            _ => Device::Cpu,
        },
        Choice::Cpu => Device::Cpu,
        Choice::Metal => Device::Metal,
        Choice::Cuda => Device::Cuda,
    })
}

impl Training {
    /// By `plan`, on `device`, with models of these shapes.
    pub fn of(plan: &Plan, shapes: &Shapes, device: Device, clock: Clock) -> anyhow::Result<Self> {
        let threads = rayon::current_num_threads();
        let forecast = Forecast::new(plan, shapes, device, threads);
        let on_a_mac = Forecast::new(plan, shapes, Device::Metal, threads);
        let mac_bytes = on_a_mac.peak.taken + on_a_mac.beside;
        let settings = &plan.recipe.train;
        let tokens = forecast.step_tokens as f64;
        let (rate, from) = match clock {
            Clock::None => (None, ""),
            Clock::Rate(rate) => (Some(rate), "as given"),
            Clock::Probe => {
                let name = match device {
                    Device::Cpu => "cpu",
                    Device::Metal => "metal",
                    Device::Cuda => "cuda",
                };
                let opened = name.parse::<Choice>()?.open()?;
                let seconds = trainer::probe(plan, shapes, &opened.device)?;
                (Some(tokens / seconds), "from steps of one and two layers on this machine")
            }
        };
        let time = rate.map(|rate| Time {
            seconds: settings.steps as f64 * tokens / rate,
            tokens_per_second: rate,
            from,
        });
        let start: usize =
            qat_infer::model::params(&shapes.student).iter().map(|p| p.shape.iter().product::<usize>()).sum();
        Ok(Self {
            device: match device {
                Device::Cpu => "cpu",
                Device::Metal => "metal",
                Device::Cuda => "cuda",
            },
            trained: forecast.trained,
            steps: settings.steps,
            tokens_per_step: forecast.step_tokens,
            memory: Memory::of(&forecast.peak, forecast.beside),
            process_memory: forecast.process.as_ref().map(|peak| Memory::of(peak, 0)),
            mac_bytes,
            macs: tiers::training(mac_bytes).map(|tier| tier.name).collect(),
            checkpoint_bytes: forecast.checkpoint,
            checkpoints: settings.keep_checkpoints,
            start_bytes: 4 * start as u64,
            teacher_cache_bytes: forecast.cache,
            flop: forecast.step_flop * settings.steps as f64,
            time,
            not_counted: forecast.notes,
        })
    }
}

/// What a part is called in a table.
fn name(part: Part) -> &'static str {
    match part {
        Part::Weights => "weights, norms and scales of the student",
        Part::Optimizer => "the optimizer's memory of them",
        Part::Rounded => "matrices on their grid",
        Part::Gradients => "gradients of weights",
        Part::Activations => "activations and their gradients",
        Part::Logits => "logits of a chunk of tokens",
        Part::Teacher => "the teacher",
        Part::Loading => "weights on their way in or out",
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut found = table::with_header(&["memory when most is held", "bytes", "share"], &[0]);
        let mut row = |what: &str, bytes: u64| {
            let share = format!("{:.1} %", 100.0 * bytes as f64 / self.total.max(1) as f64);
            found.add_row([what.to_owned(), table::bytes(bytes), share]);
        };
        self.parts.iter().for_each(|(part, bytes)| row(name(*part), *bytes));
        let rest = [
            ("files that are read", self.mapped_files),
            ("the allocator: holes that nothing fits in", self.allocator),
            ("the program itself", self.beside),
        ];
        rest.into_iter().filter(|(_, bytes)| *bytes > 0).for_each(|(what, bytes)| row(what, bytes));
        row("all", self.total);
        write!(f, "{found}")
    }
}

impl fmt::Display for Training {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "training on {}\n\n{}\n", self.device, self.memory)?;
        if let Some(memory) = &self.process_memory {
            writeln!(f, "and beside the GPU\n\n{memory}\n")?;
        }
        let mut lines = table::lines();
        let mut row = |name: &str, value: String| {
            lines.add_row([name.to_owned(), value]);
        };
        row("trained", format!("{} numbers", table::count(self.trained)));
        let tokens = self.steps as u64 * self.tokens_per_step;
        row(
            "steps",
            format!(
                "{} of {} tokens: {} in all",
                self.steps,
                table::count(self.tokens_per_step),
                table::count(tokens)
            ),
        );
        row(
            "on a Mac's GPU",
            match self.macs.first() {
                Some(first) => format!("{}: {} and larger", table::bytes(self.mac_bytes), first),
                None => format!("{}: more than a Mac of 64 GB has for a GPU", table::bytes(self.mac_bytes)),
            },
        );
        row(
            "disk",
            format!(
                "{} for the start, {} for each of {} checkpoints",
                table::bytes(self.start_bytes),
                table::bytes(self.checkpoint_bytes),
                self.checkpoints
            ),
        );
        if let Some([of_token, all]) = self.teacher_cache_bytes {
            row("teacher's cache", format!("{of_token} bytes a token, at most {}", table::bytes(all)));
        }
        let time = duration(self.flop / 1e12);
        row("arithmetic", format!("{:.3e} operations of products: {time} at 1 TFLOP/s", self.flop));
        row(
            "time",
            match &self.time {
                Some(Time { seconds, tokens_per_second, from }) => format!(
                    "{} at {} tokens/s ({from}), without validation and evaluation",
                    duration(*seconds),
                    table::count(tokens_per_second.round() as u64)
                ),
                None => "measure it with --probe here, or give --tokens-per-second".to_owned(),
            },
        );
        for note in &self.not_counted {
            row("not counted", (*note).to_owned());
        }
        write!(f, "{lines}")
    }
}
