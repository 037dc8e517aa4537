//! Products, with what is done to their inputs and their outputs.
//!
//! Knows no order of operations. Invariant: what an operation of the plan gives does not depend on how many calls it
//! became.

use qat_quant::kernels::metal;

use super::{Lowering, Part};
use crate::Result;
use crate::files::Activations;
use crate::metal::kernels::RmsNorm;
use crate::metal::list::{Access, Span};
use crate::metal::matrix::Matrix;
use crate::model::Gate;
use crate::plan::{Epilogue, Norm, Product, Value, Weight as _};

/// Products that one call can make: their places among those of the operation.
type Alike = Vec<usize>;

impl Lowering<'_, '_> {
    pub(super) fn products(
        &mut self,
        x: Value,
        norm: Option<Norm<'_>>,
        products: &[Product<'_, &Matrix>],
        outs: &[Value],
        epilogue: Epilogue,
    ) -> Result<()> {
        let groups = alike(products);
        // On the way a product makes the gate that most models have.
        let gate_later = match epilogue {
            Epilogue::Gate(by) if groups.len() > 1 || by != Gate::Silu => Some(by),
            _ => None,
        };
        let epilogue = match epilogue {
            Epilogue::Store => metal::Epilogue::Store,
            Epilogue::Add => metal::Epilogue::Add,
            Epilogue::Gate(_) if gate_later.is_some() => metal::Epilogue::Store,
            Epilogue::Gate(_) => metal::Epilogue::Gate,
        };
        let mut prepared = [None; 2];
        for group in groups {
            let of_group: Vec<_> = group.iter().map(|at| (products[*at], outs[*at])).collect();
            self.product(x, norm, &of_group, epilogue, &mut prepared)?;
        }
        if let Some(by) = gate_later {
            self.gate(by, [outs[0], outs[1]], products[0].matrix.rows());
        }
        Ok(())
    }

    /// One call for products that are alike. `prepared` are inputs that earlier calls of the operation have made.
    fn product(
        &mut self,
        x: Value,
        norm: Option<Norm<'_>>,
        products: &[(Product<'_, &Matrix>, Value)],
        epilogue: metal::Epilogue,
        prepared: &mut [Option<Span>; 2],
    ) -> Result<()> {
        let first = products[0].0;
        let (cols, int8) = (first.matrix.cols(), is_int8(first.matrix));
        let is_on_the_way = self.tokens == 1;
        let input = match is_on_the_way || norm.is_none() && !int8 {
            true => self.value(x, cols),
            false => self.prepared(x, cols, norm, int8, prepared)?,
        };
        let norm = norm.filter(|_| is_on_the_way);
        let matrices: Vec<_> = products
            .iter()
            .map(|(p, _)| metal::Matrix {
                rows: p.matrix.rows() as u32,
                tensor_scale: p.matrix.tensor_scale(),
            })
            .collect();
        let kernel = metal::Product {
            storage: first.matrix.storage(),
            cols: cols as u32,
            matrices: &matrices,
            tokens: self.tokens as u32,
            norm: norm.map(|norm| norm.eps),
            int8: int8 && is_on_the_way,
            has_bias: first.bias.is_some(),
            epilogue,
        };
        let mut spans = vec![(0, input, Access::Read)];
        if let Some(norm) = norm {
            spans.push((2, self.vector(norm.weight)?, Access::Read));
        }
        let out_access = if epilogue == metal::Epilogue::Add { Access::ReadWrite } else { Access::Write };
        for (place, (product, out)) in (0..).zip(products) {
            // Of a gated pair the second is stored nowhere.
            if epilogue != metal::Epilogue::Gate || place == 0 {
                spans.push((3 + place, self.value(*out, product.matrix.rows()), out_access));
            }
            spans.push((6 + place, self.matrix(product.matrix)?, Access::Read));
            if let Some(bias) = product.bias {
                spans.push((9 + place, self.vector(bias)?, Access::Read));
            }
        }
        let label = match self.part {
            Part::Body => label(norm.is_some(), products.iter().map(|(p, _)| p.matrix.name()), epilogue),
            Part::Head { .. } => "head".to_owned(),
        };
        self.call(&label, kernel.dispatch(), 1, spans);
        Ok(())
    }

    /// The inputs of products, normed and rounded; made by the first call that needs them.
    fn prepared(
        &mut self,
        x: Value,
        cols: usize,
        norm: Option<Norm<'_>>,
        int8: bool,
        prepared: &mut [Option<Span>; 2],
    ) -> Result<Span> {
        let which = usize::from(int8);
        if let Some(span) = prepared[which] {
            return Ok(span);
        }
        let buffers = &self.script.buffers;
        let span = buffers.words(buffers.prepared[which], self.tokens * cols);
        let label = match (norm.is_some(), int8) {
            (true, false) => "norm",
            (true, true) => "norm, rounded",
            (false, _) => "rounded",
        };
        self.norm_rows(label, self.value(x, cols), cols, norm, int8, span)?;
        prepared[which] = Some(span);
        Ok(span)
    }

    /// Norm and rounding of rows, whichever are asked for.
    pub(super) fn norm_rows(
        &mut self,
        label: &str,
        x: Span,
        width: usize,
        norm: Option<Norm<'_>>,
        int8: bool,
        out: Span,
    ) -> Result<()> {
        let kernel = RmsNorm {
            rows: self.tokens as u32,
            width: width as u32,
            norm: norm.map(|norm| norm.eps),
            int8,
            residual: false,
        };
        let weight = norm.map(|norm| self.vector(norm.weight)).transpose()?;
        let spans = [(0, x, Access::Read), (2, out, Access::Write)];
        let weight = weight.map(|weight| (1, weight, Access::Read));
        self.call(label, kernel.dispatch(), 3, spans.into_iter().chain(weight));
        Ok(())
    }
}

fn is_int8(matrix: &Matrix) -> bool {
    matrix.activations() == Activations::Int8Token
}

/// Products that are stored, rounded and biased alike, together; in the order of the first of each.
fn alike(products: &[Product<'_, &Matrix>]) -> Vec<Alike> {
    let kind = |at: usize| {
        let Product { matrix, bias } = &products[at];
        (matrix.storage(), is_int8(matrix), bias.is_some())
    };
    let mut groups: Vec<Alike> = Vec::new();
    for at in 0..products.len() {
        match groups.iter_mut().find(|group| kind(group[0]) == kind(at)) {
            Some(group) => group.push(at),
            None => groups.push(vec![at]),
        }
    }
    groups
}

/// What a product computes, by the last parts of the names in the file that mean something.
fn label<'a>(is_normed: bool, names: impl Iterator<Item = &'a str>, epilogue: metal::Epilogue) -> String {
    let short = |name: &'a str| name.trim_end_matches(".weight").rsplit('.').next().unwrap_or(name);
    let names: Vec<&str> = is_normed.then_some("norm").into_iter().chain(names.map(short)).collect();
    let then = match epilogue {
        metal::Epilogue::Store => "",
        metal::Epilogue::Add => ", added",
        metal::Epilogue::Gate => ", gated",
    };
    names.join(" + ") + then
}
