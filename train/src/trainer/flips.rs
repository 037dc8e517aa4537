//! How restless the codes are: which share of them has changed since the line before, and which share has only come back.
//!
//! A weight near the edge of its cell flips between two codes and teaches the others nothing (Nagel et al., arXiv 2203.11086): many that
//! come back mean oscillation, many that change and stay mean learning. Knows no loop.

use serde::{Deserialize, Serialize};

use crate::{Result, student::Student};

/// Shares of all quantized weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FlipLog {
    /// Whose code differs from that of the line before.
    pub changed: f64,
    /// Of these, those back at the code of the line before that.
    pub returned: f64,
}

/// The codes at the last two lines of the log.
#[derive(Debug, Default)]
pub struct Flips {
    last: Option<Vec<u8>>,
    before: Option<Vec<u8>>,
}

impl Flips {
    /// Compares the codes of the moment with those seen before, and remembers them; none the first time.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn observe(&mut self, student: &Student) -> Result<Option<FlipLog>> {
        Ok(self.compare(student.codes()?))
    }

    fn compare(&mut self, now: Vec<u8>) -> Option<FlipLog> {
        let log = self.last.as_ref().map(|last| {
            let changed = last.iter().zip(&now).filter(|(last, now)| last != now).count();
            let returned = self.before.iter().flat_map(|before| before.iter().zip(last).zip(&now));
            let returned = returned.filter(|((before, last), now)| before == now && last != now).count();
            let share = |count: usize| count as f64 / now.len().max(1) as f64;
            FlipLog { changed: share(changed), returned: share(returned) }
        });
        self.before = self.last.replace(now);
        log
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_comes_back_has_changed_and_returned() {
        let mut flips = Flips::default();
        assert_eq!(flips.compare(vec![1, 2, 3, 4]), None);
        assert_eq!(flips.compare(vec![1, 2, 3, 4]), Some(FlipLog { changed: 0.0, returned: 0.0 }));
        assert_eq!(flips.compare(vec![1, 3, 4, 4]), Some(FlipLog { changed: 0.5, returned: 0.0 }));
        assert_eq!(flips.compare(vec![1, 2, 5, 4]), Some(FlipLog { changed: 0.5, returned: 0.25 }));
    }
}
