//! Processes that were started together, as a build sees them that can't bring them together: one says why, and nothing is trained twice.
//!
//! What such a build can do is in `scripts/test-mpi.sh`.

use crate::workshop::{Said, Workshop};

const TRAIN: [&str; 6] = ["train", "tiny.toml", "--out", "run", "--device", "cpu"];

#[test]
fn one_of_several_says_which_engine_is_missing_and_none_trains() {
    let shop = Workshop::furnished();
    let started = |rank: &str| {
        let mut command = shop.command(TRAIN);
        command.env("RANK", rank).env("WORLD_SIZE", "2").env("LOCAL_RANK", rank);
        command
    };
    let parts =
        ["started 2 processes", "lacks the engine", "mpirun or srun", "--features mpi", "one process"];
    shop.refusal(started("0"), &parts);
    shop.refusal(started("1"), &["error: rank 1: ", "lacks the engine"]);
    let mut alone = shop.command(TRAIN);
    alone.env("RANK", "0").env("WORLD_SIZE", "1");
    assert_eq!(Said::of(alone).code, Some(0));
}

#[test]
fn variables_that_say_half_are_refused_by_name() {
    let shop = Workshop::furnished();
    let mut command = shop.command(TRAIN);
    command.env("WORLD_SIZE", "4").env_remove("RANK");
    shop.refusal(command, &["WORLD_SIZE = 4", "RANK = nothing", "unset WORLD_SIZE to train alone"]);
    let mut command = shop.command(["bench", "--train", "tiny.toml"]);
    command.env("WORLD_SIZE", "many");
    shop.refusal(command, &["WORLD_SIZE = \"many\"", "whole number"]);
}
