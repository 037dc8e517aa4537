//! Which tiers a 64-bit Arm processor is found to have. `scripts/test-neon.sh` says in `NEON_TIERS` which ones the
//! processor that it emulates must have; without it, they are those of the features that the standard library finds.

use std::arch::is_aarch64_feature_detected;

use qat_quant::kernels::Isa;

#[test]
fn the_tiers_of_kernels_are_those_that_this_processor_has() {
    let found: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    let named = std::env::var("NEON_TIERS").unwrap_or_default();
    let mut expected: Vec<&str> = named.split_whitespace().collect();
    if expected.is_empty() {
        expected.push("portable");
        expected.extend(is_aarch64_feature_detected!("dotprod").then_some("neon-dotprod"));
        expected.extend(is_aarch64_feature_detected!("i8mm").then_some("neon-i8mm"));
    }
    assert_eq!(found, expected);
    let active = Isa::active().unwrap().name();
    assert!(
        std::env::var_os("QAT_ISA").is_some() || expected.last() == Some(&active),
        "the best runs, not {active}"
    );
}
