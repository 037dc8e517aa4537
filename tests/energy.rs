//! Energy and heat: joules of a token from counters that the test turns, how long a speed lasts, and what is said where nothing is counted.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    model,
    workshop::{Said, Workshop, send},
};

const RANGE: u64 = 1_000_000_000;

/// A workshop with a model that takes a while, and a counter.
fn shop() -> Workshop {
    let shop = Workshop::new();
    let mut config = model::config();
    (config["hidden_size"], config["intermediate_size"]) = (256.into(), 256.into());
    shop.write("tiny.json", config.to_string());
    shop.done("init --shape tiny.json --format int4-g32 --out packed");
    shop.write("powercap/intel-rapl:0/name", "package-0\n");
    shop.write("powercap/intel-rapl:0/max_energy_range_uj", format!("{RANGE}\n"));
    set(&counter(&shop), RANGE - 1_000_000);
    shop
}

fn counter(shop: &Workshop) -> PathBuf {
    shop.path("powercap/intel-rapl:0/energy_uj")
}

/// Whole or not at all: a reader never sees half a number.
fn set(file: &PathBuf, microjoules: u64) {
    let new = file.with_extension("new");
    std::fs::write(&new, microjoules.to_string()).expect("written");
    std::fs::rename(new, file).expect("renamed");
}

/// Runs the command while the counter turns by 50 W, once over its end at least.
fn while_it_turns(shop: &Workshop, line: &str) -> Said {
    /// Ends it, also when a test fails.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = End(&is_over);
        scope.spawn(|| {
            let (file, began) = (counter(shop), Instant::now());
            while !is_over.load(Ordering::Relaxed) {
                let used = began.elapsed().as_micros() as u64 * 50;
                set(&file, (RANGE - 1_000_000 + used) % (RANGE + 1));
                thread::sleep(Duration::from_millis(2));
            }
        });
        shop.done(line)
    })
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} is no number: {value}"))
}

#[test]
fn a_bench_says_what_a_token_takes_in_joules() {
    let shop = shop();
    let line = "bench packed --pp 0 --tg 120 --reps 200 --threads 1 --powercap powercap";
    let said = while_it_turns(&shop, &format!("{line} --format json"));
    let rows: Value = serde_json::from_str(&said.out).expect("JSON");
    let row = &rows[0];
    assert_eq!(row["energy"], "RAPL: package-0");
    let watts = number(row, "watts");
    // The counter moves every 2 ms or, on a busy machine, much later: there are repetitions for a second.
    assert!(watts > 5.0 && watts < 250.0, "{row}");
    let samples = row["samples_ns"].as_array().expect("a list").iter().map(|ns| ns.as_f64().expect("ns"));
    let seconds = samples.sum::<f64>() / 1e9;
    let joules = number(row, "joules_per_token") * 200.0 * 120.0;
    assert!((joules - watts * seconds).abs() < 1e-6 * joules, "{row}");
    let said = while_it_turns(&shop, line);
    assert!(
        said.out.contains("| per token |") && said.out.contains("\nenergy: RAPL: package-0\n"),
        "{said:?}"
    );
}

#[test]
fn where_nothing_is_counted_a_bench_and_an_evaluation_say_why() {
    let shop = Workshop::furnished();
    let said = shop.done("bench teacher --pp 8 --tg 0 --reps 1 --threads 1");
    let line = said.out.lines().find(|line| line.starts_with("energy: ")).expect("a line");
    assert!(
        line.contains("not measured: ") || line.contains("RAPL: ") || line.contains("IOReport: "),
        "{line}"
    );
    let said = shop.done("eval teacher --data valid.txt --json report.json");
    assert!(said.out.contains("energy"), "{said:?}");
    let report = shop.json("report.json");
    let counted = report["decode_joules_per_token"].is_number();
    let told = report["energy"].as_str().expect("a text");
    assert_eq!(!counted, told.starts_with("not measured: "), "{report}");
    let bench = "bench teacher --pp 8 --tg 0 --powercap";
    shop.refused(&format!("{bench} nowhere"), &["--powercap", "nowhere: no such folder"]);
    std::fs::create_dir(shop.path("none")).expect("made");
    shop.refused(&format!("{bench} none"), &["--powercap", "found no zones"]);
}

#[test]
fn a_sustained_speed_is_drawn_over_time_and_written_as_points() {
    let shop = shop();
    let line = "bench packed --tg 20 --depth 4 --threads 1 --sustain 3s --powercap powercap";
    let said = while_it_turns(&shop, &format!("{line} --json course.json"));
    for part in ["tokens per second\n", "█", " of 3 s: ", "last tenth", "energy: ", "(RAPL: package-0)"] {
        assert!(said.out.contains(part), "{part} is not in {said:?}");
    }
    let course = shop.json("course.json");
    let points = course["points"].as_array().expect("points");
    assert!((2..=4).contains(&points.len()), "{course}");
    let tokens: f64 = points.iter().map(|point| number(point, "tokens")).sum();
    assert_eq!(tokens, number(&course, "tokens"));
    assert!(points.is_sorted_by(|a, b| number(a, "seconds") < number(b, "seconds")), "{course}");
    for point in points {
        let rate = number(point, "tokens_per_second");
        assert!(
            rate > 0.0 && number(point, "tokens") / rate <= 3.5 && number(point, "watts") > 5.0,
            "{point}"
        );
    }
    assert!(number(&course, "joules_per_token") > 0.0 && number(&course, "seconds") >= 3.0, "{course}");
    let said = shop.done(&format!("{line} --format csv"));
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[0], "seconds,tokens,tokens_per_second,watts,joules_per_token,celsius");
    assert!(lines.len() > 2 && lines.iter().all(|line| line.split(',').count() == 6), "{said:?}");
    shop.refused("bench packed --sustain 10", &["--sustain", "such as 90s, 10m or 1h"]);
    shop.refused("bench packed packed --sustain 1s", &["want one model"]);
    shop.refused("bench packed --tg 4,8 --sustain 1s", &["one of each --tg and --depth"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_sustained_run_with_what_it_has() {
    let shop = shop();
    let mut command = shop.command("bench packed --tg 20 --threads 1 --sustain 1h --format json".split(' '));
    let child = command.spawn().expect("starts");
    thread::sleep(Duration::from_secs(3));
    send("INT", &child);
    let said = Said::from(child.wait_with_output().expect("ends"));
    assert_eq!(said.code, Some(0), "{said:?}");
    let course: Value = serde_json::from_str(&said.out).expect("JSON");
    assert!(number(&course, "tokens") > 0.0 && number(&course, "seconds") < 600.0, "{course}");
    assert_eq!(number(&course, "asked_seconds"), 3600.0);
}
