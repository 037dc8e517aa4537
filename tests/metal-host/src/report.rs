//! What a run did, as the checking build counts it.

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// GPU threads that ran.
    pub threads: u64,
    /// Threadgroup barriers, counted once for a threadgroup.
    pub barriers: u64,
    /// Operations of simdgroups, counted once for a simdgroup.
    pub simd_operations: u64,
    /// Threadgroup memory, arguments and variables.
    pub threadgroup_bytes: usize,
    /// By index; nothing is counted but in the checking build.
    pub buffers: Vec<Traffic>,
}

/// What went through a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes read, each as often as it was.
    pub read: u64,
    /// Bytes written, each as often as it was.
    pub written: u64,
    /// Bytes of an output that were never written.
    pub unwritten: u64,
}
