//! The tiers of instructions, each forced by `QAT_ISA`: the same scores on all, and a clear word about one that isn't there.

use crate::workshop::{Said, Workshop};

/// The tiers of this processor, as the refusal of another lists them.
fn tiers(shop: &Workshop) -> Vec<String> {
    let mut command = shop.command(["eval", "packed", "--data", "valid.txt"]);
    command.env("QAT_ISA", "mmx");
    let said = shop.refusal(command, &["QAT_ISA is mmx", "this processor has: portable"]);
    let (_, names) = said.err.trim().rsplit_once("has: ").expect("a list");
    names.split(", ").map(str::to_owned).collect()
}

#[test]
fn every_tier_gives_the_same_perplexity_to_four_digits() {
    let shop = Workshop::furnished();
    for (weights, activations) in [("int4-g32", "int8"), ("int4-g32", "float"), ("ternary-g64", "int8")] {
        shop.done(&format!("export teacher --format qat --weights {weights} --out {weights}-{activations}"));
        if !shop.path("packed").exists() {
            shop.done("export teacher --format qat --weights int4-g32 --out packed");
        }
        let perplexities: Vec<String> = tiers(&shop)
            .iter()
            .map(|tier| {
                let line = format!(
                    "eval {weights}-{activations} --data valid.txt --activations {activations} --json report.json"
                );
                let mut command = shop.command(line.split_whitespace());
                command.env("QAT_ISA", tier);
                let said = Said::of(command);
                assert_eq!(said.code, Some(0), "{tier}: {said:?}");
                let report = shop.json("report.json");
                assert_eq!(report["isa"].as_str(), Some(tier.as_str()));
                format!("{:.4}", report["perplexity"].as_f64().expect("a number"))
            })
            .collect();
        let first = &perplexities[0];
        assert!(perplexities.iter().all(|ppl| ppl == first), "{weights}, {activations}: {perplexities:?}");
    }
}
