//! Tests of the container by files made by hand, and of models by the files of llama.cpp's own tools.

mod blocks;
mod bytes;
mod export;
mod hostile;
mod models;
mod packing;
mod round_trip;
mod values;
mod vocabularies;
