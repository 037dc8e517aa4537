//! The host emulator as a device: lists are run call by call, by the processor.
//!
//! Calls between two barriers may run at the same time, so that their order must not matter: here they run last one first.
//! Buffers begin with bytes that no float is meant to be (NaN), so that what is read before it is written shows.

use std::collections::BTreeMap;

use qat_infer::Result;
use qat_infer::metal::{self, Access, Argument, Buffer, BufferId, Call, Content, Device, List, Span};
use qat_metal_host::{Arg, Build, Constant, Launch, Library, Mode, Report};

/// A GPU in the processor.
pub struct Emulator {
    memory: Vec<Vec<u8>>,
    mode: Mode,
    libraries: BTreeMap<&'static str, Library>,
    limit: Option<u64>,
    /// Runs of lists, and bytes that the host wrote between them.
    pub runs: usize,
    pub written: usize,
}

impl Emulator {
    pub fn new(mode: Mode) -> Self {
        Self { memory: Vec::new(), mode, libraries: BTreeMap::new(), limit: None, runs: 0, written: 0 }
    }

    pub fn with_limit(limit: u64) -> Self {
        Self { limit: Some(limit), ..Self::new(Mode::VALUE) }
    }

    fn library(&mut self, name: &'static str) -> Library {
        let new = || {
            let source = metal::library(name).unwrap_or_else(|| panic!("no library {name}")).source;
            Library::new(name, source).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        self.libraries.entry(name).or_insert_with(new).clone()
    }

    fn part(&mut self, Span { buffer: BufferId(buffer), offset, bytes }: Span) -> &mut [u8] {
        &mut self.memory[buffer][offset as usize..(offset + bytes) as usize]
    }

    fn call(&mut self, call: &Call) {
        let library = self.library(call.launch.library);
        // What is written is written aside, so that nothing stands in the way of what is read.
        let mut results: Vec<(usize, Span, Access, Vec<u8>)> = Vec::new();
        let mut places = 0;
        for binding in &call.bindings {
            let place = usize::from(binding.place);
            places = places.max(place + 1);
            if let Argument::Buffer { span, access: access @ (Access::Write | Access::ReadWrite) } =
                binding.argument
            {
                results.push((place, span, access, self.part(span).to_vec()));
            }
        }
        let mut args: Vec<Arg<'_>> = (0..places).map(|_| Arg::None).collect();
        for binding in &call.bindings {
            args[usize::from(binding.place)] = match &binding.argument {
                Argument::Bytes(bytes) => Arg::In(bytes),
                Argument::Buffer { span, access: Access::Read } => {
                    let start = span.offset as usize;
                    let bytes = &self.memory[span.buffer.0][start..start + span.bytes as usize];
                    // At an address no rounder than that of the real one.
                    if start.is_multiple_of(16) {
                        Arg::In(bytes)
                    } else {
                        Arg::InAt(bytes, 1 << start.trailing_zeros())
                    }
                }
                Argument::Buffer { .. } => continue,
            };
        }
        let mut outs = BTreeMap::new();
        for (place, _, access, bytes) in &mut results {
            outs.insert(*place, *access);
            args[*place] = if *access == Access::Write { Arg::Out(bytes) } else { Arg::InOut(bytes) };
        }
        let report = self.launch(&library, call, &mut args);
        if self.mode.build == Build::Checked {
            for (place, _) in outs.iter().filter(|(_, access)| **access == Access::Write) {
                let left = report.buffers.get(*place).map_or(0, |traffic| traffic.unwritten);
                assert_eq!(left, 0, "{}: bytes of argument {place} that are said to be written", call.label);
            }
        }
        for (_, span, _, bytes) in results {
            self.part(span).copy_from_slice(&bytes);
        }
    }

    fn launch(&self, library: &Library, call: &Call, args: &mut [Arg<'_>]) -> Report {
        let constant = |constant: &metal::Constant| match *constant {
            metal::Constant::Bool(value) => Constant::Bool(value),
            metal::Constant::U32(value) => Constant::U32(value),
            metal::Constant::F32(value) => Constant::F32(value),
        };
        let metal::Launch { kernel, constants, groups, threads, threadgroup_bytes, .. } = &call.launch;
        let constants: Vec<_> = constants.iter().map(|(place, value)| (*place, constant(value))).collect();
        let bytes: &[u32] = if *threadgroup_bytes > 0 { &[*threadgroup_bytes] } else { &[] };
        let launch = Launch {
            kernel,
            constants: &constants,
            groups: *groups,
            threads: *threads,
            threadgroup_bytes: bytes,
        };
        library.run(self.mode, &launch, args).unwrap_or_else(|e| panic!("{}: {e}", call.label))
    }
}

impl Device for Emulator {
    type List = List;

    fn allocate(&mut self, buffers: &[Buffer]) -> Result<()> {
        let memory = |buffer: &Buffer| match &buffer.content {
            Content::Weights(bytes) => bytes.to_vec(),
            Content::Constants | Content::Blank => vec![0xff; buffer.bytes as usize],
        };
        self.memory = buffers.iter().map(memory).collect();
        Ok(())
    }

    fn prepare(&mut self, list: &List) -> Result<List> {
        Ok(list.clone())
    }

    fn write(&mut self, buffer: BufferId, offset: u64, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len();
        self.part(Span { buffer, offset, bytes: bytes.len() as u64 }).copy_from_slice(bytes);
        Ok(())
    }

    fn run(&mut self, list: &List) -> Result<()> {
        self.runs += 1;
        let mut rest = list.calls();
        while let Some((_, others)) = rest.split_first() {
            let beside = others.iter().take_while(|call| !call.barrier).count();
            let (group, after) = rest.split_at(1 + beside);
            group.iter().rev().for_each(|call| self.call(call));
            rest = after;
        }
        Ok(())
    }

    fn read(&mut self, buffer: BufferId, offset: u64, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(self.part(Span { buffer, offset, bytes: out.len() as u64 }));
        Ok(())
    }

    fn working_set_limit(&self) -> Option<u64> {
        self.limit
    }
}
