//! Numbers that the host will want while a GPU goes on: read as soon as they are there, not when all is done that was asked of the device since.
//!
//! Knows no device: where there is an [`Aside`] it reads, elsewhere the device is waited for. Invariant: the same numbers either way.

use std::{fmt, rc::Rc};

use candle_core::{Device, Result, Tensor};

/// A way to numbers on a device past what it is still asked to do.
pub(super) trait Aside: fmt::Debug {
    /// Makes what is read next wait for what was asked of the device until now.
    ///
    /// # Errors
    /// The driver failed.
    fn turn(&self) -> Result<()>;

    /// Waits for `numbers`, contiguous f32.
    ///
    /// # Errors
    /// The driver failed.
    fn read(&self, numbers: &Tensor) -> Result<Vec<f32>>;
}

/// Who reads from one device.
#[derive(Debug)]
pub(crate) struct Reader(Option<Rc<dyn Aside>>);

impl Reader {
    /// Of tensors on `device`.
    ///
    /// # Errors
    /// The driver failed.
    pub fn new(device: &Device) -> Result<Self> {
        super::aside(device).map(Self)
    }

    /// `numbers`, contiguous f32, as they are after what was asked of the device until now.
    ///
    /// # Errors
    /// The driver failed.
    pub fn later(&self, numbers: Tensor) -> Result<Later> {
        self.0.iter().try_for_each(|aside| aside.turn())?;
        Ok(Later { numbers, aside: self.0.clone() })
    }
}

/// Numbers that may not be there yet.
pub(crate) struct Later {
    numbers: Tensor,
    aside: Option<Rc<dyn Aside>>,
}

impl Later {
    /// Waits for them.
    ///
    /// # Errors
    /// The device failed.
    pub fn read(self) -> Result<Vec<f32>> {
        match self.aside {
            Some(aside) => aside.read(&self.numbers),
            None => self.numbers.flatten_all()?.to_vec1(),
        }
    }
}
