//! The way of the data: text ─▶ documents ─▶ token file ─▶ windows ─▶ batches.
