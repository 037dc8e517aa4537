//! A run on the whole terminal: its curves as they grow, for those who sit and watch.
//!
//! Drawn by a thread of its own, so that keys are heard and clocks move while a step is taken. Invariants: the terminal is given back however
//! the run ends; a terminal that can't be drawn on any more stops the drawing and not the run.

mod view;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use qat_train::trainer::Event;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event as Key, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};

use crate::{progress::WAITING, report::Curves};

/// How long keys are waited for between two looks at the run.
const TICK: Duration = Duration::from_millis(200);
/// Lines that are kept for when the terminal is given back.
const LINES: usize = 500;

/// A terminal that shows a run.
pub struct Dashboard {
    events: Sender<Event>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Dashboard {
    /// Takes the terminal for the run `name` in the folder `out`; `stop` is raised when the user asks for an end.
    ///
    /// # Errors
    /// The terminal can't be drawn on.
    pub fn open(name: &str, out: &Path, stop: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let terminal = ratatui::try_init().context("--dashboard: the terminal can't be drawn on")?;
        let (events, heard) = channel();
        let watched = Watched::new(name, out);
        let thread = std::thread::spawn(move || {
            let lines = watch(terminal, watched, &heard, &stop);
            ratatui::restore();
            lines
        });
        Ok(Self { events, thread: Some(thread) })
    }

    /// Shows one event.
    pub fn show(&self, event: Event) {
        // A thread that has ended shows nothing more; the run goes on.
        let _ = self.events.send(event);
    }

    /// Gives the terminal back, and what was said meanwhile.
    pub fn close(mut self) -> Vec<String> {
        let thread = self.thread.take();
        drop(self);
        thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// Draws until the run is over; gives the lines that were said.
fn watch(
    mut terminal: DefaultTerminal,
    mut watched: Watched,
    heard: &Receiver<Event>,
    stop: &AtomicBool,
) -> Vec<String> {
    // Not every terminal has a second screen to begin on.
    let _ = terminal.clear();
    loop {
        loop {
            match heard.try_recv() {
                Ok(event) => watched.hear(event),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return watched.lines,
            }
        }
        if stop.load(Ordering::SeqCst) && !watched.stopping {
            watched.stopping = true;
            // A signal's handler may have written over the picture.
            let _ = terminal.clear();
        }
        if terminal.draw(|frame| view::draw(frame, &watched)).is_err() {
            return watched.lines;
        }
        let asked = match event::poll(TICK) {
            Ok(true) => event::read().is_ok_and(|key| is_end(&key)),
            Ok(false) => false,
            // No keys, then; the clock still has to move.
            Err(_) => {
                std::thread::sleep(TICK);
                false
            }
        };
        if asked && stop.swap(true, Ordering::SeqCst) {
            ratatui::restore();
            std::process::exit(130);
        }
    }
}

/// Whether a key asks for the end.
fn is_end(key: &Key) -> bool {
    let Key::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = key else { return false };
    match code {
        KeyCode::Char('q') => true,
        KeyCode::Char('c') => modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

/// What there is to see of a run.
#[derive(Debug)]
struct Watched {
    name: String,
    out: PathBuf,
    began: Instant,
    curves: Curves,
    /// Steps in all, and tokens in each.
    steps: usize,
    tokens_per_step: usize,
    /// What is done before the first step: its name, how much is done and how much there is.
    task: Option<(&'static str, u64, u64)>,
    lines: Vec<String>,
    stopping: bool,
}

impl Watched {
    fn new(name: &str, out: &Path) -> Self {
        Self {
            name: name.to_owned(),
            out: out.to_owned(),
            began: Instant::now(),
            curves: Curves::default(),
            steps: 0,
            tokens_per_step: 1,
            task: None,
            lines: Vec::new(),
            stopping: false,
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Note(text) => self.say(text),
            Event::Reading { done, total } => self.task = Some(("reading the text", done, total)),
            Event::Waiting => self.task = Some((WAITING, 0, 1)),
            Event::Tokenizing { done, total } => self.task = Some(("tokenizing", done, total)),
            Event::Teaching { done, total } => self.task = Some(("asking the teacher", done, total)),
            Event::Begin { from, steps, tokens_per_step, .. } => {
                self.task = None;
                (self.steps, self.tokens_per_step) = (steps, tokens_per_step);
                if from > 0 {
                    // The curves of before belong to the run; without them there is still the rest.
                    self.curves = Curves::read(&self.out).unwrap_or_default();
                    self.say(format!("continuing after step {from}"));
                }
            }
            Event::Step(log) => self.curves.add_step(&log),
            Event::Valid(log) => {
                let kl = log.valid_kl.map_or(String::new(), |kl| format!(", KL to the teacher {kl:.4}"));
                let held_out = log.valid_cross_entropy;
                self.say(format!("step {}: held out: {held_out:.4} nats/token{kl}", log.step));
                self.curves.add_valid(&log);
            }
            Event::Saved { step, path } => self.say(format!("step {step}: saved {}", path.display())),
        }
    }

    fn say(&mut self, line: String) {
        if self.lines.len() == LINES {
            self.lines.remove(0);
        }
        // A terminal obeys control characters.
        self.lines.push(line.chars().filter(|c| !c.is_control()).collect());
    }

    /// Seconds that the rest of the run takes at the speed of the last line.
    fn left(&self) -> Option<f64> {
        let speed = self.curves.tps.last()?[1];
        Some(
            self.steps.saturating_sub(self.curves.step) as f64 * self.tokens_per_step as f64
                / speed.max(1e-9),
        )
    }
}
