//! The way of the data: text ─▶ documents ─▶ token file ─▶ windows ─▶ batches.

pub mod stories;
