//! How long the speed lasts: tokens are written without a pause, and counted by the second, until the time is up.
//!
//! A chip that grows hot slows down, which the few repetitions of a test don't see. Knows no drawing. Invariant: every point is made of whole
//! tokens and of the time that writing them took; what was in the cache before is read again in each round, and not counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::throughput::{Setup, Test, WARM_UP, ready};
use crate::Result;
use crate::cpu::Model;
use crate::energy::{Meter, celsius};

/// Most points, so that a night fits on a page.
const POINTS: u32 = 600;

/// Shortest time of a point.
const SHORTEST: Duration = Duration::from_secs(1);

/// What happened between the point before and this one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since the beginning, at its end.
    pub seconds: f64,
    /// Tokens written.
    pub tokens: usize,
    /// Tokens per second of writing.
    pub tokens_per_second: f64,
    /// Mean power while they were written, where it is measured.
    pub watts: Option<f64>,
    /// Temperature of the processor at its end, where the system tells it.
    pub celsius: Option<f64>,
}

impl Point {
    /// Joules that a token took.
    pub fn joules_per_token(&self) -> Option<f64> {
        self.watts.map(|watts| watts / self.tokens_per_second)
    }
}

/// Writes tokens on `model`, in rounds of as many as `test` has on top of its depth, for `length` or until `stop` is raised; `seen` hears of
/// each point.
///
/// # Errors
/// When a round doesn't fit the model's context, or the system gives no threads.
pub fn sustain(
    model: &Model,
    (test, setup): (Test, &Setup),
    length: Duration,
    meter: Option<&Meter>,
    stop: &AtomicBool,
    seen: &mut dyn FnMut(&Point),
) -> Result<Vec<Point>> {
    let (mut session, ids) = ready(model, test, setup)?;
    let (before, timed) = ids.split_at(test.depth);
    for id in timed.iter().take(WARM_UP) {
        session.step(*id)?;
    }
    let mut points = Vec::new();
    let each = (length / POINTS).max(SHORTEST);
    let began = Instant::now();
    let is_over = || stop.load(Ordering::Relaxed) || began.elapsed() >= length;
    let mut due = each;
    let mut tally = Tally::new(meter);
    while !is_over() {
        session.reset();
        if !before.is_empty() {
            session.prefill(before)?;
        }
        tally.go_on();
        for id in timed {
            session.step(*id)?;
            tally.tokens += 1;
            let now = began.elapsed();
            if now >= due || is_over() {
                let point = tally.close(now);
                seen(&point);
                points.push(point);
                due = now + each;
                if is_over() {
                    return Ok(points);
                }
                tally.go_on();
            }
        }
        tally.rest();
    }
    if tally.tokens > 0 {
        points.push(tally.close(began.elapsed()));
    }
    Ok(points)
}

/// What adds up to a point.
struct Tally<'m> {
    meter: Option<&'m Meter>,
    tokens: usize,
    spent: Duration,
    joules: Option<f64>,
    /// When writing went on, and what the meter said then.
    since: Option<(Instant, Option<f64>)>,
}

impl<'m> Tally<'m> {
    fn new(meter: Option<&'m Meter>) -> Self {
        Self { meter, tokens: 0, spent: Duration::ZERO, joules: meter.map(|_| 0.0), since: None }
    }

    fn go_on(&mut self) {
        self.since = Some((Instant::now(), self.meter.and_then(Meter::joules)));
    }

    fn rest(&mut self) {
        let Some((since, before)) = self.since.take() else { return };
        self.spent += since.elapsed();
        let used = self.meter.and_then(|meter| meter.since(before));
        self.joules = self.joules.zip(used).map(|(sum, used)| sum + used);
    }

    fn close(&mut self, now: Duration) -> Point {
        self.rest();
        let spent = self.spent.as_secs_f64().max(1e-9);
        let point = Point {
            seconds: now.as_secs_f64(),
            tokens: self.tokens,
            tokens_per_second: self.tokens as f64 / spent,
            watts: self.joules.map(|joules| joules / spent),
            celsius: celsius(self.meter),
        };
        *self = Self::new(self.meter);
        point
    }
}
