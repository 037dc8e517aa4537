//! Others in the same place: a second run, runs that share what they keep, and what belongs to another teacher or text.

use std::fs;

use crate::{
    Case, Extent, Held,
    draw::Draw,
    model::tokenizer,
    scene::{RESUME, TRAIN, Whole, copy, logged, reached, scene, start},
    workshop::{Said, Workshop},
};

/// All of them.
pub fn cases(draw: &mut Draw, extent: Extent, _: &Whole) -> Vec<Case> {
    let mut cases = vec![
        Case::new("a second run in the same folder", second),
        Case::new("a cache of another teacher", another_teacher),
        Case::new("a cache of another tokenizer", another_tokenizer),
        Case::new("a shard of another teacher", another_shard),
        Case::new("tokens of another text", another_text),
    ];
    for number in 1..=if extent.all { 8 } else { 1 } {
        let delay = draw.share();
        cases.push(Case::new(format!("two runs that share both caches, {number}"), move |whole| {
            sharing(whole, delay)
        }));
    }
    cases
}

fn second(whole: &Whole) -> Held {
    let shop = scene();
    let mut first = start(&shop, TRAIN);
    assert!(reached(&mut first, || logged(&shop) > 1));
    let said = [TRAIN, RESUME, "train run.toml --out run --restart"].map(|line| shop.run(line));
    let first = Said::from(first.wait_with_output().expect("ended"));
    assert_eq!(first.code, Some(0), "{first:?}");
    for said in &said {
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.contains("another qat is training here") && said.err.contains("--out"), "{said:?}");
    }
    whole.is_matched_by(&shop);
    Held::Yes("refused three times; the first came to the same bits".to_owned())
}

/// A finished scene without its run, and with another teacher where its student is from.
fn with_another_teacher(whole: &Whole) -> Workshop {
    let shop = copy(whole.shop());
    fs::remove_dir_all(shop.path("run")).expect("removed");
    shop.model_with("teacher", |_, tensors| {
        let (_, values) = tensors.get_mut("model.norm.weight").expect("there");
        values[0] += 1.0 / 1024.0;
    });
    shop
}

fn another_teacher(whole: &Whole) -> Held {
    let shop = with_another_teacher(whole);
    let parts = ["taught/teacher.json: the cache was made with teacher = ", "name another folder"];
    let said = shop.refused(TRAIN, &parts);
    Held::Yes(format!("\"{}\"", said.err.lines().last().unwrap_or_default()))
}

fn another_tokenizer(whole: &Whole) -> Held {
    let shop = copy(whole.shop());
    fs::remove_dir_all(shop.path("run")).expect("removed");
    // The ids of two letters change places.
    let mut other = tokenizer();
    let vocab = other["model"]["vocab"].as_object_mut().expect("an object");
    let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
    vocab.insert("a".to_owned(), b);
    vocab.insert("b".to_owned(), a);
    shop.write("teacher/tokenizer.json", other.to_string());
    let parts = ["taught/teacher.json: the cache was made with tokens = ", "name another folder"];
    let said = shop.refused(TRAIN, &parts);
    Held::Yes(format!("\"{}\"", said.err.lines().last().unwrap_or_default()))
}

fn another_shard(whole: &Whole) -> Held {
    let other = with_another_teacher(whole);
    fs::remove_dir_all(other.path("taught")).expect("removed");
    other.done(TRAIN);
    let shop = whole.stopped();
    let (theirs, ours) = (other.path("taught/shard-000001"), shop.path("taught/shard-000001"));
    assert!(fs::read(&theirs).expect("read") != fs::read(&ours).expect("read"), "teachers differ");
    fs::copy(theirs, ours).expect("copied");
    let said = shop.done(RESUME);
    let told = said.err.lines().find(|line| line.contains("those of another cache; it is made again"));
    whole.is_matched_by(&shop);
    Held::Yes(format!("\"{}\"; the same bits", told.expect("it is said")))
}

fn another_text(whole: &Whole) -> Held {
    let other = scene();
    other.text("more.txt", 10_001);
    other.done(TRAIN);
    let tokens = |shop: &Workshop| {
        let mut listing = fs::read_dir(shop.path("cache")).expect("listed").flatten();
        listing.next().expect("a token file").path()
    };
    let shop = whole.stopped();
    fs::copy(tokens(&other), tokens(&shop)).expect("copied");
    let said = shop.done(RESUME);
    let told = said.err.lines().find(|line| line.contains("tokens of another corpus or tokenizer"));
    whole.is_matched_by(&shop);
    Held::Yes(format!("\"{}\"; the same bits", told.expect("it is said")))
}

fn sharing(whole: &Whole, delay: f64) -> Held {
    let shop = scene();
    let first = start(&shop, TRAIN);
    std::thread::sleep(whole.stretch(0).mul_f64(delay));
    let second = start(&shop, &TRAIN.replace("--out run", "--out second"));
    for child in [first, second] {
        let said = Said::from(child.wait_with_output().expect("ended"));
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    let beside = Workshop::new();
    fs::rename(shop.path("second"), beside.path("second")).expect("moved");
    whole.is_matched_by(&shop);
    fs::remove_dir_all(shop.path("run")).expect("removed");
    fs::rename(beside.path("second"), shop.path("run")).expect("moved");
    whole.is_matched_by(&shop);
    Held::Yes("the same bits in both".to_owned())
}
