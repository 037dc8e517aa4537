//! Ranks on NVIDIA GPUs, one each: tensors travel by NCCL, what is small over TCP.
//!
//! NCCL has a stream of its own, so that gradients are on their way while the device's stream makes the next ones: the two wait for each other by
//! events, the host for neither. Parts are exchanged and then summed here, in the order of the ranks: as many bytes as NCCL's own sum by parts moves,
//! and the same bits as with every other engine.

use std::sync::Arc;

use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Storage, Tensor,
    cuda_backend::cudarc::{
        driver::{CudaSlice, CudaStream},
        nccl::{Comm, Id, group_end, group_start},
    },
    op::BackpropOp,
};

use super::{Begun, Engine, Launch, Ranks, rendezvous::Meeting};
use crate::{Error, Result, ops::gpu::cuda::flat};

/// Meets the ranks of the `launch`, of which this one's tensors live on `device`.
///
/// # Errors
/// Ranks that don't come, or don't reach each other's GPU.
pub(super) fn connect(launch: &Launch, device: &CudaDevice, on_loss: fn(&str)) -> Result<Ranks> {
    let (rank, size) = (launch.rank, launch.size);
    let meeting = Meeting::new((rank, size), launch.meeting()?, on_loss)?;
    let own =
        if rank == 0 { Id::new().map_err(failed)?.internal().map(|c| c as u8).to_vec() } else { Vec::new() };
    let told = meeting.gather(&own)?;
    let id: [u8; 128] =
        told[0].as_slice().try_into().map_err(|_| Error::Ranks("NCCL: no id was told".into()))?;
    let stream = device.cuda_stream().context().new_stream().map_err(failed)?;
    let comm = Comm::from_rank(stream, rank, size, Id::uninit(id.map(|byte| byte as _))).map_err(failed)?;
    Ok(Ranks::over(Box::new(Nccl { rank, size, device: device.clone(), comm: Arc::new(comm), meeting })))
}

/// Ranks on GPUs.
struct Nccl {
    rank: usize,
    size: usize,
    device: CudaDevice,
    comm: Arc<Comm>,
    meeting: Meeting,
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {} over NCCL", self.rank, self.size)
    }
}

fn failed(problem: impl std::fmt::Debug) -> Error {
    Error::Ranks(format!("NCCL: {problem:?}"))
}

impl Nccl {
    /// Begins to send `to[r]` to each rank and to receive `lens[r]` elements from it; `own` stays.
    fn begin(&self, to: Vec<Tensor>, lens: &[usize], own: Tensor) -> Result<Exchange> {
        let others = || (0..self.size).filter(|&rank| rank != self.rank);
        let mut from = Vec::new();
        for rank in others().filter(|&rank| lens[rank] > 0) {
            from.push((rank, self.device.alloc_zeros::<f32>(lens[rank])?));
        }
        let (main, apart) = (self.device.cuda_stream(), self.comm.stream());
        // What is sent was asked of the device before, and so was the room for what comes.
        apart.join(&main).map_err(failed)?;
        group_start().map_err(failed)?;
        for rank in others().filter(|&rank| to[rank].elem_count() > 0) {
            self.send(&to[rank], rank)?;
        }
        for (rank, room) in &mut from {
            self.comm.recv(room, *rank as i32).map_err(failed)?;
        }
        group_end().map_err(failed)?;
        Ok(Exchange {
            device: self.device.clone(),
            apart,
            own: (self.rank, own),
            size: self.size,
            from,
            _sent: to,
        })
    }

    fn send(&self, part: &Tensor, to: usize) -> Result<()> {
        flat(part, |part| Ok(self.comm.send(part, to as i32)))?.map_err(failed)
    }
}

impl Engine for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        self.meeting.gather(&bytes)
    }

    fn begin_sum(&self, parts: Vec<Tensor>) -> Result<Box<dyn Begun<Tensor>>> {
        let own = parts[self.rank].clone();
        let lens = vec![own.elem_count(); self.size];
        Ok(Box::new(self.begin(parts, &lens, own)?))
    }

    fn begin_spread(&self, own: Tensor, lens: &[usize]) -> Result<Box<dyn Begun<Vec<Tensor>>>> {
        Ok(Box::new(self.begin(vec![own.clone(); self.size], lens, own)?))
    }
}

/// Parts on their way.
struct Exchange {
    device: CudaDevice,
    apart: Arc<CudaStream>,
    own: (usize, Tensor),
    size: usize,
    from: Vec<(usize, CudaSlice<f32>)>,
    /// Read by NCCL until its stream is through.
    _sent: Vec<Tensor>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Memory is given back in the order of the device's stream, and so not before NCCL has read and written it.
        let _ = self.device.cuda_stream().join(&self.apart);
    }
}

impl Exchange {
    /// What came from each rank, for whatever the device is asked next.
    fn arrived(mut self) -> Result<Vec<Tensor>> {
        self.device.cuda_stream().join(&self.apart).map_err(failed)?;
        let mut parts = vec![Tensor::zeros(0, DType::F32, &Device::Cpu)?; self.size];
        for (rank, room) in std::mem::take(&mut self.from) {
            let len = room.len();
            let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(room, self.device.clone()));
            parts[rank] = Tensor::from_storage(storage, len, BackpropOp::none(), false);
        }
        parts[self.own.0] = self.own.1.clone();
        Ok(parts)
    }
}

impl Begun<Tensor> for Exchange {
    fn wait(self: Box<Self>) -> Result<Tensor> {
        let mut parts = self.arrived()?.into_iter();
        let first = parts.next().ok_or_else(|| failed("no parts"))?;
        parts.try_fold(first, |sum, part| Ok((sum + part)?))
    }
}

impl Begun<Vec<Tensor>> for Exchange {
    fn wait(self: Box<Self>) -> Result<Vec<Tensor>> {
        self.arrived()
    }
}
