//! What docs/exports.md says fits where.

use super::*;

/// The table in docs/exports.md is what the exporters say.
#[test]
fn the_table_of_grids_is_true() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/exports.md");
    let page = std::fs::read_to_string(path).expect("the page");
    let cells = |values: Vec<String>| format!("| {} |\n", values.join(" | "));
    let mut table =
        cells(std::iter::once("format".to_owned()).chain(Target::ALL.map(|t| t.to_string())).collect());
    table += &format!("|{}\n", "---|".repeat(Target::ALL.len() + 1));
    let param = Param {
        name: "model.layers.0.mlp.up_proj.weight".into(),
        shape: vec![256, 256],
        role: Role::Projection,
    };
    let stored = Format::all().into_iter().map(Storage::Packed).chain([Storage::Float(FloatType::F32)]);
    // One row for the formats that only differ in group and in the type of the scale, if they fit alike.
    let mut rows: Vec<(String, Vec<bool>)> = Vec::new();
    for storage in stored {
        let name = match storage {
            Storage::Packed(Format::Affine(affine)) => format!("`int{}-affine-g*`", affine.bits()),
            Storage::Packed(format) => format!("`{format}`"),
            Storage::Float(_) => "float".to_owned(),
        };
        let row = (name, Target::ALL.map(|target| target.holds(&param, storage)).to_vec());
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    for (name, holds) in rows {
        table += &cells(
            std::iter::once(name)
                .chain(holds.iter().map(|yes| if *yes { "yes" } else { "–" }.to_owned()))
                .collect(),
        );
    }
    assert!(page.contains(&table), "docs/exports.md wants this table:\n\n{table}");
}
