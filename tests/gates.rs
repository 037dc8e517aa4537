//! Gates: what must hold decides the exit code, and what can't be asked is refused before anything is measured.

use crate::workshop::Workshop;

#[test]
fn gates_that_hold_pass_and_one_that_does_not_fails() {
    let shop = Workshop::furnished();
    let eval = "eval teacher --data valid.txt --ctx 64 --against teacher";
    let said = shop.done(&format!("{eval} --require kl<1e-6 --require perplexity>1 --require same_top1>=1"));
    assert!(said.out.contains("pass kl_mean<0.000001: 0.000000"), "{said:?}");
    assert!(said.out.contains("pass same_top1>=1: 1.000000"), "{said:?}");
    let said = shop.run(&format!("{eval} --require kl<1e-6 --require perplexity<1.5 --json report.json"));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("FAIL perplexity<1.5:") && said.out.contains("pass kl_mean"), "{said:?}");
    assert!(shop.json("report.json")["perplexity"].as_f64().expect("a number") > 1.5);
}

#[test]
fn a_misspelt_gate_lists_what_there_is() {
    let shop = Workshop::furnished();
    for (gate, parts) in [
        ("perplexety<9", ["perplexety", "perplexity, perplexity_se"]),
        ("bits<5", ["bits", "bits_per_byte, bits_per_weight"]),
        ("kl=0.05", ["a single =", "kl<0.05"]),
        ("kl<small", ["small", "not a number"]),
    ] {
        shop.refused(
            &format!("eval teacher --data valid.txt --require {gate}"),
            &[&["--require"], &parts[..]].concat(),
        );
    }
}

#[test]
fn a_gate_on_a_reference_wants_one() {
    let shop = Workshop::furnished();
    for gate in ["kl<0.05", "same_top1>0.9", "delta_ln_ppl<0.1"] {
        shop.refused(
            &format!("eval teacher --data valid.txt --require {gate} --json report.json"),
            &["--require", gate, "--against DIR"],
        );
    }
}
