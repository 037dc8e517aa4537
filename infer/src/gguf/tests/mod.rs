//! Tests of the container by files made by hand.

mod bytes;
mod hostile;
mod round_trip;
mod values;
