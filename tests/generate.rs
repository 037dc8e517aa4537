//! `qat generate` and `qat doctor`: what they write, and what they refuse.

use crate::{model, workshop::Workshop};

/// A workshop with the float model `model`.
fn with_model() -> Workshop {
    let shop = Workshop::new();
    model::write(&shop, "model");
    shop
}
