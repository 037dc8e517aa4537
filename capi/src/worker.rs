//! The thread of a session: it borrows the model, keeps the sequence, and carries out one order after the other.
//!
//! Knows no C. Invariant: whoever gave an order waits for its end, and hears the answer on the thread of the order.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{Builder, JoinHandle};

use qat_infer::cpu::KvType;

use crate::conversation::{Conversation, Listener, Usage, Wish};
use crate::model::Loaded;
use crate::status::{Failure, Status, caught};

/// A session, for whoever gives it orders.
pub struct Worker {
    orders: Mutex<Option<Sender<Order>>>,
    cancelled: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Answer { wish: Wish, events: SyncSender<Event>, replies: Receiver<ControlFlow<()>> },
    Reset { done: Sender<()> },
}

enum Event {
    Text(String),
    Done(Result<Usage, Failure>),
}

impl Worker {
    /// A session of `model` for texts of up to `context` tokens, keys and values as `kv`.
    pub fn start(model: Arc<Loaded>, context: usize, kv: KvType) -> Result<Self, Failure> {
        let (orders, inbox) = channel();
        let (opened, is_open) = sync_channel(1);
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&cancelled);
        let work = move || {
            let report = opened.clone();
            let end = caught(|| {
                model.weights().with_sequence(context, kv, &mut |sequence| {
                    // Nobody waits any longer only if the session is being closed already.
                    let _ = opened.send(Ok(()));
                    carry_out(&inbox, &mut Conversation::new(&model, sequence, context), &flag);
                })?;
                Ok(())
            });
            if let Err(failure) = end {
                let _ = report.try_send(Err(failure));
            }
        };
        let thread = Builder::new().name("qat session".into()).spawn(work);
        let thread = thread.map_err(|e| Failure::internal(format!("a thread for the session: {e}")))?;
        let ended = || Err(Failure::internal("the session's thread ended before it began"));
        is_open.recv().unwrap_or_else(|_| ended())?;
        Ok(Self { orders: Mutex::new(Some(orders)), cancelled, thread: Some(thread) })
    }

    /// Writes an answer; `hear` is called on this thread with each piece.
    pub fn answer(
        &self,
        wish: Wish,
        hear: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Usage, Failure> {
        self.order(|orders| {
            self.cancelled.store(false, Ordering::Relaxed);
            let (events, heard) = sync_channel(0);
            let (reply, replies) = sync_channel(0);
            orders.send(Order::Answer { wish, events, replies }).map_err(|_| gone())?;
            loop {
                match heard.recv().map_err(|_| gone())? {
                    Event::Text(text) => reply.send(hear(&text)).map_err(|_| gone())?,
                    Event::Done(end) => return end,
                }
            }
        })
    }

    /// Ends the answer that is being written, if one is.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Forgets the text.
    pub fn reset(&self) -> Result<(), Failure> {
        self.order(|orders| {
            let (done, is_done) = channel();
            orders.send(Order::Reset { done }).map_err(|_| gone())?;
            is_done.recv().map_err(|_| gone())
        })
    }

    fn order<T>(&self, give: impl FnOnce(&Sender<Order>) -> Result<T, Failure>) -> Result<T, Failure> {
        let orders = match self.orders.try_lock() {
            Ok(orders) => orders,
            Err(TryLockError::Poisoned(_)) => return Err(gone()),
            Err(TryLockError::WouldBlock) => {
                let message = "another call works on this session; wait for its end, or cancel it".to_owned();
                return Err(Failure { status: Status::Busy, message });
            }
        };
        give(orders.as_ref().ok_or_else(gone)?)
    }
}

impl Drop for Worker {
    /// Waits for the thread, so that memory is free and the model let go of when a session is closed.
    fn drop(&mut self) {
        self.cancel();
        if let Ok(mut orders) = self.orders.lock() {
            orders.take();
        }
        if let Some(thread) = self.thread.take() {
            // A panic was reported to whoever waited for it.
            let _ = thread.join();
        }
    }
}

fn gone() -> Failure {
    Failure::internal("the session ended by a mistake in qat; close it")
}

/// Carries out orders until nobody can give more, or one panicked: then what is remembered can't be relied on.
fn carry_out(inbox: &Receiver<Order>, conversation: &mut Conversation<'_>, cancelled: &AtomicBool) {
    while let Ok(order) = inbox.recv() {
        match order {
            Order::Reset { done } => {
                conversation.reset();
                let _ = done.send(());
            }
            Order::Answer { wish, events, replies } => {
                let mut listener = Remote { events: &events, replies: &replies, cancelled };
                let end = caught(|| Ok(conversation.answer(&wish, &mut listener)?));
                let is_lost = end.as_ref().is_err_and(|failure| failure.status == Status::Internal);
                let _ = events.send(Event::Done(end));
                if is_lost {
                    return;
                }
            }
        }
    }
}

/// Who gave the order, heard and told from the session's thread.
struct Remote<'a> {
    events: &'a SyncSender<Event>,
    replies: &'a Receiver<ControlFlow<()>>,
    cancelled: &'a AtomicBool,
}

impl Listener for Remote<'_> {
    fn is_wanted(&self) -> bool {
        !self.cancelled.load(Ordering::Relaxed)
    }

    fn hear(&mut self, text: &str) -> ControlFlow<()> {
        match self.events.send(Event::Text(text.to_owned())) {
            Ok(()) => self.replies.recv().unwrap_or(ControlFlow::Break(())),
            Err(_) => ControlFlow::Break(()),
        }
    }
}
