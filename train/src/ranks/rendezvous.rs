//! Where ranks meet that nothing else brings together: over TCP at the first of them, for what is small, and to notice one that is gone.
//!
//! Knows no tensor. Each rank has two lines to the first: one for what all tell each other, and one on which both sides beat, so that a process that
//! died, or a machine that is cut off, is noticed while everybody waits for a GPU. The network is trusted, as MPI's is.

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs as _},
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// What a line begins with: the protocol and its version.
const MAGIC: &[u8; 8] = b"QATRANK1";
/// Longest wait for the others to come.
const COMING: Duration = Duration::from_secs(120);
/// Time between beats, and after how long a silent rank is given up.
const BEAT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(100);
/// A beat, and the last one of a rank that ends in order.
const ALIVE: u8 = 1;
const BYE: u8 = 2;
/// Longest message: whoever is not one of us can't have memory taken.
const LONGEST: u64 = 1 << 31;

/// What a line is for.
const TALK: u8 = 0;
const LIFE: u8 = 1;

/// The lines of one rank.
#[derive(Debug)]
pub(super) struct Meeting {
    rank: usize,
    size: usize,
    /// Of the first rank, to the others in their order; of another, to the first.
    lines: RefCell<Vec<TcpStream>>,
    lives: Vec<TcpStream>,
}

impl Meeting {
    /// Meets the others at `address` (host and port), where the first rank listens; `on_loss` is told when a rank is gone.
    ///
    /// # Errors
    /// An address that can't be listened at or reached; ranks that don't come within two minutes.
    pub fn new((rank, size): (usize, usize), address: &str, on_loss: fn(&str)) -> Result<Self> {
        let failed = |e: std::io::Error| {
            Error::Ranks(format!(
                "rank {rank} of {size} can't meet the others at {address} (MASTER_ADDR and MASTER_PORT): {e}"
            ))
        };
        let [lines, lives] =
            if rank == 0 { receive(size, address) } else { call(rank, size, address) }.map_err(failed)?;
        for (at, life) in lives.iter().enumerate() {
            let other = if rank == 0 { at + 1 } else { 0 };
            watch(life, other, on_loss).map_err(failed)?;
        }
        Ok(Self { rank, size, lines: RefCell::new(lines), lives })
    }

    /// The bytes of all ranks, in their order.
    ///
    /// # Errors
    /// A rank that is gone.
    pub fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut lines = self.lines.borrow_mut();
        let gone = |e: std::io::Error| Error::Ranks(format!("rank {}: another rank is gone: {e}", self.rank));
        if self.rank > 0 {
            send(&mut lines[0], bytes).map_err(gone)?;
            return (0..self.size).map(|_| take(&mut lines[0]).map_err(gone)).collect();
        }
        let mut all = vec![bytes.to_vec()];
        for line in lines.iter_mut() {
            all.push(take(line).map_err(gone)?);
        }
        for line in lines.iter_mut() {
            let whole: Vec<u8> = all.iter().flat_map(|bytes| message(bytes)).collect();
            line.write_all(&whole).map_err(gone)?;
        }
        Ok(all)
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        // Who doesn't hear it has gone as well.
        self.lives.iter_mut().for_each(|life| drop(life.write_all(&[BYE])));
    }
}

/// Waits for the lines of all other ranks.
fn receive(size: usize, address: &str) -> std::io::Result<[Vec<TcpStream>; 2]> {
    let listener = TcpListener::bind(address).or_else(|e| {
        // The address may be one under which this machine is known elsewhere.
        let port = address.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
        port.map_or(Err(e), |port| TcpListener::bind(("0.0.0.0", port)))
    })?;
    listener.set_nonblocking(true)?;
    let began = Instant::now();
    let mut found: [Vec<Option<TcpStream>>; 2] = [0; 2].map(|_| (1..size).map(|_| None).collect());
    while let missing @ 1.. = found.iter().flatten().filter(|line| line.is_none()).count() {
        match listener.accept() {
            Ok((line, _)) => {
                line.set_nonblocking(false)?;
                // Others may knock too.
                if let Ok((rank, purpose)) = greeted(&line, size) {
                    found[purpose][rank - 1] = Some(line);
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && began.elapsed() < COMING => {
                thread::sleep(RETRY)
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                let problem = format!(
                    "{missing} of {} lines did not come within {} s",
                    2 * (size - 1),
                    COMING.as_secs()
                );
                return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, problem));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(found.map(|lines| lines.into_iter().flatten().collect()))
}

/// Who calls, and for what.
fn greeted(mut line: &TcpStream, size: usize) -> std::io::Result<(usize, usize)> {
    let bad = |problem: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, problem);
    line.set_read_timeout(Some(BEAT))?;
    let mut hello = [0; 17];
    line.read_exact(&mut hello)?;
    let number =
        |at: usize| u32::from_le_bytes([hello[at], hello[at + 1], hello[at + 2], hello[at + 3]]) as usize;
    let (rank, of, purpose) = (number(8), number(12), usize::from(hello[16]));
    if &hello[..8] != MAGIC || of != size || rank == 0 || rank >= size || purpose > 1 {
        return Err(bad("not a rank of this run"));
    }
    line.set_read_timeout(None)?;
    line.set_nodelay(true)?;
    Ok((rank, purpose))
}

/// Both lines to the first rank.
fn call(rank: usize, size: usize, address: &str) -> std::io::Result<[Vec<TcpStream>; 2]> {
    let began = Instant::now();
    let line = |purpose: u8| loop {
        let tried = address.to_socket_addrs().and_then(|mut found| {
            let found = found.next().ok_or_else(|| std::io::Error::other("no such host"))?;
            TcpStream::connect_timeout(&found, BEAT)
        });
        match tried {
            Ok(mut line) => {
                let numbers = [rank as u32, size as u32].map(u32::to_le_bytes).concat();
                line.write_all(&[&MAGIC[..], &numbers, &[purpose]].concat())?;
                line.set_nodelay(true)?;
                return Ok(vec![line]);
            }
            Err(e) if began.elapsed() > COMING => return Err(e),
            Err(_) => thread::sleep(RETRY),
        }
    };
    Ok([line(TALK)?, line(LIFE)?])
}

/// Beats on `life`, and listens for the beats of rank `other`.
fn watch(life: &TcpStream, other: usize, on_loss: fn(&str)) -> std::io::Result<()> {
    let (mut beats, mut heard) = (life.try_clone()?, life.try_clone()?);
    heard.set_read_timeout(Some(SILENCE))?;
    thread::spawn(move || {
        while beats.write_all(&[ALIVE]).is_ok() {
            thread::sleep(BEAT);
        }
    });
    thread::spawn(move || {
        let mut beat = [ALIVE];
        while beat[0] == ALIVE {
            if let Err(e) = heard.read_exact(&mut beat) {
                let silent =
                    [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut].contains(&e.kind());
                let how = if silent {
                    format!("has said nothing for {} s", SILENCE.as_secs())
                } else {
                    "is gone".to_owned()
                };
                return on_loss(&format!("rank {other} {how}"));
            }
        }
    });
    Ok(())
}

/// `bytes` with their length in front.
fn message(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

fn send(line: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    line.write_all(&message(bytes))
}

fn take(line: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut len = [0; 8];
    line.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    if len > LONGEST {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("a message of {len} bytes"),
        ));
    }
    let mut bytes = Vec::new();
    line.take(len).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// An address at which nobody listens.
    fn address() -> String {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        free.local_addr().expect("an address").to_string()
    }

    fn together<R: Send>(size: usize, on_loss: fn(&str), f: impl Fn(usize, Meeting) -> R + Sync) -> Vec<R> {
        let address = address();
        thread::scope(|scope| {
            let (f, address) = (&f, &address);
            let met = |rank| f(rank, Meeting::new((rank, size), address, on_loss).expect("met"));
            let running: Vec<_> = (0..size).rev().map(|rank| scope.spawn(move || met(rank))).collect();
            running
                .into_iter()
                .rev()
                .map(|thread| thread.join().expect("a rank that doesn't panic"))
                .collect()
        })
    }

    #[test]
    fn ranks_meet_in_any_order_tell_each_other_what_they_like_and_part_in_peace() {
        static LOST: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let told = together(
            3,
            |problem| LOST.lock().expect("whole").push(problem.into()),
            |rank, meeting| {
                // A knock by somebody else changes nothing.
                let all = meeting.gather(&vec![rank as u8; rank * 70_000]).expect("told");
                let again = meeting.gather(&[rank as u8]).expect("told again");
                // Nobody leaves while another still talks.
                meeting.gather(&[]).expect("all are through");
                (all.iter().map(Vec::len).collect::<Vec<_>>(), again.concat())
            },
        );
        assert!(told.iter().all(|told| *told == (vec![0, 70_000, 140_000], vec![0, 1, 2])), "{told:?}");
        thread::sleep(RETRY);
        assert!(LOST.lock().expect("whole").is_empty());
    }

    #[test]
    fn a_rank_that_is_gone_without_a_word_is_noticed_by_all() {
        static LOST: Mutex<Vec<String>> = Mutex::new(Vec::new());
        together(
            2,
            |problem| LOST.lock().expect("whole").push(problem.into()),
            |rank, meeting| {
                if rank == 1 {
                    // As the system closes them for a process that is killed.
                    for line in meeting.lives.iter().chain(meeting.lines.borrow().iter()) {
                        line.shutdown(std::net::Shutdown::Both).expect("closed");
                    }
                }
                let told = meeting.gather(&[1]);
                assert!(told.expect_err("gone").to_string().contains("another rank is gone"));
                let began = Instant::now();
                let noticed = || LOST.lock().expect("whole").contains(&"rank 1 is gone".to_owned());
                while rank == 0 && !noticed() {
                    assert!(began.elapsed() < COMING, "nobody noticed");
                    thread::sleep(RETRY);
                }
            },
        );
    }

    #[test]
    fn an_address_that_is_none_is_refused_with_the_variables_that_say_it() {
        let m = Meeting::new((0, 2), "nowhere.invalid:99999", |_| {}).expect_err("refused").to_string();
        assert!(m.contains("nowhere.invalid:99999 (MASTER_ADDR and MASTER_PORT)"), "{m}");
    }
}
