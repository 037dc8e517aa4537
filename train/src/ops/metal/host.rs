//! TEMPORARY bridge.
use super::{Bind, Work};
use candle_core::{CpuStorage, Device, Result, Storage, Tensor, InplaceOp1, Layout, DType};
use std::process::Command;
fn bytes(t: &Tensor) -> Vec<u8> {
    match t.dtype() { DType::U32 => t.flatten_all().unwrap().to_vec1::<u32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
      _ => t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect() }
}
struct Over(Vec<f32>);
impl InplaceOp1 for Over { fn name(&self) -> &'static str { "over" } fn cpu_fwd(&self, s: &mut CpuStorage, l: &Layout) -> Result<()> { if let CpuStorage::F32(v) = s { let o = l.start_offset(); v[o..o + self.0.len()].copy_from_slice(&self.0); } Ok(()) } }
pub(super) fn run(work: &Work, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let _ = Storage::Cpu(CpuStorage::F32(vec![]));
    let mut outs: Vec<Vec<u8>> = work.outputs.iter().map(|s| vec![0xffu8; 4 * s.elem_count().max(1)]).collect();
    let mut ins: Vec<Vec<u8>> = inputs.iter().map(|t| bytes(t)).collect();
    for task in &work.tasks {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = String::new();
        for (i, b) in task.binds.iter().enumerate() {
            let (c, data): (char, &[u8]) = match *b { Bind::Nothing => ('-', &[]), Bind::Input(k) => ('i', &ins[k]), Bind::InOut(k) => ('m', &ins[k]), Bind::Output(k) => ('o', &outs[k]), Bind::Made(k) => ('i', &outs[k]) };
            spec.push(c); std::fs::write(dir.path().join(i.to_string()), data).unwrap();
        }
        let shape: Vec<u8> = task.shape.iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(dir.path().join(task.binds.len().to_string()), shape).unwrap(); spec.push('i');
        for mode in ["c", "v"] {
        let out = Command::new("python3").arg("/tmp/ops-proto/drive.py").args([mode, task.library.name, task.kernel]).args(task.groups.map(|g| g.to_string())).arg(task.threads.to_string()).arg(dir.path()).arg(format!("{spec}")).output().unwrap();
        assert!(out.status.success(), "{} {mode}: {} {}", task.kernel, String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if mode == "c" { for (i, b) in task.binds.iter().enumerate() { if let Bind::InOut(k) = *b { std::fs::write(dir.path().join(i.to_string()), &ins[k]).unwrap(); } } }
        }
        for (i, b) in task.binds.iter().enumerate() { match *b { Bind::InOut(k) => ins[k] = std::fs::read(dir.path().join(i.to_string())).unwrap(), Bind::Output(k) => outs[k] = std::fs::read(dir.path().join(i.to_string())).unwrap(), _ => {} } }
    }
    for (k, t) in inputs.iter().enumerate() { if t.dtype() == DType::F32 && work.tasks.iter().any(|t| t.binds.contains(&Bind::InOut(k))) { t.inplace_op1(&Over(ins[k].chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()))?; } }
    outs.into_iter().zip(&work.outputs).map(|(o, s)| { let v: Vec<f32> = o.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).take(s.elem_count()).collect(); Tensor::from_vec(v, s.clone(), &Device::Cpu) }).collect()
}
pub(crate) fn available() -> bool { true }
