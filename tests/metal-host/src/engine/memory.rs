//! The memory that a kernel sees: buffers and threadgroup memory, each between pages that can't be touched.
//!
//! An arena of address space is cut into slots; what lies in a slot ends where an inaccessible page begins, so that even an
//! unchecked kernel can't go far past the end unseen. A slot is longer than what a wrapped 32-bit index of bytes can span,
//! and not a power of two, so that wrapped indices of larger elements don't meet another slot's contents.

use std::ptr;

use super::shadow::Byte;

/// Bytes of address space for each region.
const SLOT: usize = 0x1_1000_0000;
/// Buffers, threadgroup arguments, threadgroup variables.
const SLOTS: usize = 96;
pub const BUFFERS: usize = 31;
/// First slot of threadgroup memory.
const FIRST_THREADGROUP: usize = 32;
pub const THREADGROUP_ARGUMENTS: usize = 16;
const FIRST_VARIABLE: usize = FIRST_THREADGROUP + THREADGROUP_ARGUMENTS;

/// All bits set: NaN as a float, out of bounds as an index.
const POISON: u8 = 0xff;

/// What a region is made of at the start.
pub enum Contents<'a> {
    /// Given, and not to be written.
    ReadOnly(&'a [u8]),
    /// Given.
    Given(&'a [u8]),
    /// So many bytes that nobody wrote.
    Uninitialised(usize),
}

impl Contents<'_> {
    fn len(&self) -> usize {
        match self {
            Self::ReadOnly(bytes) | Self::Given(bytes) => bytes.len(),
            Self::Uninitialised(len) => *len,
        }
    }
}

/// A buffer or a piece of threadgroup memory.
pub struct Region {
    pub name: String,
    pub is_threadgroup: bool,
    pub is_bound: bool,
    /// Address of the first byte.
    pub base: usize,
    pub len: usize,
    pub is_read_only: bool,
    /// Whether the bytes were given, and so may be read before they are written.
    pub is_given: bool,
    /// One for each byte, made when the first is asked for.
    pub shadow: Vec<Byte>,
    pub read: u64,
    pub written: u64,
    /// What can be touched without a fault.
    mapped: (usize, usize),
    key: usize,
}

impl Region {
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `base..base + len` is mapped for as long as the region lives, and no kernel runs while it is looked at.
        unsafe { std::slice::from_raw_parts(self.base as *const u8, self.len) }
    }

    pub fn shadow(&mut self) -> &mut [Byte] {
        if self.shadow.is_empty() {
            self.shadow = vec![Byte::default(); self.len];
        }
        &mut self.shadow
    }

    /// Whether touching these addresses faults.
    pub fn faults(&self, address: usize, size: usize) -> bool {
        address < self.mapped.0 || address + size > self.mapped.1
    }

    fn poison(&mut self) {
        // SAFETY: as in `bytes`; the region is writable.
        unsafe { ptr::write_bytes(self.base as *mut u8, POISON, self.len) }
    }
}

/// The regions of one run.
pub struct Memory {
    arena: usize,
    regions: Vec<Option<Region>>,
    variables: usize,
}

impl Memory {
    /// Reserves address space; nothing if the system has none.
    pub fn new() -> Option<Self> {
        // SAFETY: a new mapping that nothing else knows of.
        let arena = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SLOT * SLOTS,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let regions = std::iter::repeat_with(|| None).take(SLOTS).collect();
        (arena != libc::MAP_FAILED).then_some(Self { arena: arena as usize, regions, variables: 0 })
    }

    /// The region of a slot, and whether the address is in the arena at all.
    pub fn find(&mut self, address: usize) -> Option<(usize, Option<&mut Region>)> {
        let offset = address.checked_sub(self.arena)?;
        (offset < SLOT * SLOTS).then(|| (offset / SLOT, self.regions[offset / SLOT].as_mut()))
    }

    pub fn buffer(&self, index: usize) -> Option<&Region> {
        self.regions[index].as_ref()
    }

    pub fn buffer_mut(&mut self, index: usize) -> Option<&mut Region> {
        self.regions[index].as_mut()
    }

    pub fn bind(&mut self, index: usize, contents: &Contents, align: usize) {
        self.put(index, format!("buffer {index}"), contents, align, 0);
    }

    /// Gives an unbound buffer an address that can't be touched.
    pub fn leave_unbound(&mut self, index: usize) {
        self.put(index, format!("buffer {index}, which is not bound"), &Contents::Uninitialised(0), 16, 0);
        if let Some(region) = &mut self.regions[index] {
            region.is_bound = false;
        }
    }

    pub fn bind_threadgroup(&mut self, index: usize, len: usize) {
        let name = format!("threadgroup memory {index}");
        self.put(FIRST_THREADGROUP + index, name, &Contents::Uninitialised(len), 16, 0);
    }

    pub fn threadgroup_argument(&self, index: usize) -> Option<&Region> {
        self.regions[FIRST_THREADGROUP + index].as_ref()
    }

    /// Address of the variable that `key` stands for, the same for all threads; nothing if there are too many.
    pub fn variable(
        &mut self,
        key: usize,
        len: usize,
        align: usize,
        name: impl FnOnce() -> String,
    ) -> Option<usize> {
        let variables = FIRST_VARIABLE..FIRST_VARIABLE + self.variables;
        if let Some(known) = self.regions[variables.clone()].iter().flatten().find(|r| r.key == key) {
            return Some(known.base);
        }
        if variables.end >= SLOTS {
            return None;
        }
        self.variables += 1;
        let name = format!("threadgroup variable {}", name());
        Some(self.put(variables.end, name, &Contents::Uninitialised(len), align.max(16), key))
    }

    /// Bytes of threadgroup memory, each piece rounded up to 16.
    pub fn threadgroup_bytes(&self) -> usize {
        self.regions[FIRST_THREADGROUP..].iter().flatten().map(|r| r.len.next_multiple_of(16)).sum()
    }

    /// Makes threadgroup memory what it is at the start of a threadgroup: anything.
    pub fn poison_threadgroup(&mut self) {
        self.regions[FIRST_THREADGROUP..].iter_mut().flatten().for_each(Region::poison);
    }

    fn put(&mut self, slot: usize, name: String, contents: &Contents, align: usize, key: usize) -> usize {
        let len = contents.len();
        let start = self.arena + SLOT * slot + SLOT / 2;
        // Aligned to `align` and to no more.
        let align_to = 2 * align;
        let mapped = (len + align_to).next_multiple_of(4096);
        let base = (start + mapped - len - align) / align_to * align_to + align;
        let len_or_none = if len == 0 { 0 } else { mapped };
        // SAFETY: pages of our own reservation, in a slot that holds nothing.
        unsafe {
            if len > 0 {
                libc::mprotect(start as *mut _, mapped, libc::PROT_READ | libc::PROT_WRITE);
            }
            match contents {
                Contents::ReadOnly(bytes) | Contents::Given(bytes) => {
                    ptr::copy_nonoverlapping(bytes.as_ptr(), base as *mut u8, len);
                }
                Contents::Uninitialised(_) => ptr::write_bytes(base as *mut u8, POISON, len),
            }
        }
        self.regions[slot] = Some(Region {
            name,
            is_threadgroup: slot >= FIRST_THREADGROUP,
            is_bound: true,
            base,
            len,
            is_read_only: matches!(contents, Contents::ReadOnly(_)),
            is_given: !matches!(contents, Contents::Uninitialised(_)),
            shadow: Vec::new(),
            read: 0,
            written: 0,
            mapped: (start, start + len_or_none),
            key,
        });
        base
    }

    /// Gives everything back to the system but the address space.
    pub fn clear(&mut self) {
        for region in self.regions.iter_mut().filter_map(Option::take) {
            let (start, end) = region.mapped;
            if end > start {
                // SAFETY: pages of our own that nothing points to any more.
                unsafe {
                    libc::madvise(start as *mut _, end - start, libc::MADV_DONTNEED);
                    libc::mprotect(start as *mut _, end - start, libc::PROT_NONE);
                }
            }
        }
        self.variables = 0;
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no kernel is running.
        unsafe { libc::munmap(self.arena as *mut _, SLOT * SLOTS) };
    }
}
