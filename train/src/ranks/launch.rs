//! Who started this process among others: mpirun, srun or torchrun, as their variables say.
//!
//! Reads no environment: it is given what to ask. Knows no engine but which one was built in.

use candle_core::Device;

use super::Ranks;
use crate::{Error, Result};

/// Port at which the first rank is met unless one is named.
const PORT: u16 = 29500;

/// What starts processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's or MPICH's mpirun.
    Mpirun,
    /// A step of SLURM.
    Srun,
    /// Whoever sets RANK and WORLD_SIZE, as torchrun does.
    Torchrun,
}

impl Launcher {
    /// Its command.
    fn name(self) -> &'static str {
        match self {
            Self::Mpirun => "mpirun",
            Self::Srun => "srun",
            Self::Torchrun => "torchrun (RANK and WORLD_SIZE)",
        }
    }
}

/// Variables with the number of a process, how many there are, and its number and how many there are on its machine.
const VARIABLES: [(Launcher, [&str; 4]); 4] = [
    (
        Launcher::Mpirun,
        [
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ],
    ),
    (Launcher::Mpirun, ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]),
    // SLURM_NTASKS is also set where a script was not started by srun, and runs once.
    (Launcher::Srun, ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"]),
    (Launcher::Torchrun, ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]),
];

/// One of several processes that were started together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// By whom.
    pub by: Launcher,
    /// Its number.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Its number among those on this machine, which is that of its GPU.
    pub local: usize,
    /// Where the first one is met: MASTER_ADDR and MASTER_PORT.
    meeting: Option<String>,
}

impl Launch {
    /// What the variables say; none: this process was started alone.
    ///
    /// # Errors
    /// Variables that contradict themselves, by name.
    pub fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(value) = variable(name) else { return Ok(None) };
            let refused =
                || Error::Config(format!("{name} = {value:?} in the environment: want a whole number"));
            value.parse().map(Some).map_err(|_| refused())
        };
        for (by, [rank, size, local, local_size]) in VARIABLES {
            let Some(count) = number(size)?.filter(|&count| count > 1) else { continue };
            let Some(at) = number(rank)?.filter(|&at| at < count) else {
                return Err(Error::Config(format!(
                    "{size} = {count} in the environment, but {rank} = {}: want a number below {count}; unset {size} to train alone",
                    variable(rank).unwrap_or_else(|| "nothing".into())
                )));
            };
            // Of several machines SLURM says "4(x2)", which is no number.
            let is_one_machine = variable(local_size) == Some(count.to_string());
            let here = is_one_machine.then(|| "127.0.0.1".to_owned());
            let port = variable("MASTER_PORT");
            let meeting = variable("MASTER_ADDR").or(here).map(|host| match port {
                Some(port) => format!("{host}:{port}"),
                None => format!("{host}:{PORT}"),
            });
            return Ok(Some(Self { by, rank: at, size: count, local: number(local)?.unwrap_or(0), meeting }));
        }
        Ok(None)
    }

    /// Meets the others, by what this build has: NCCL between NVIDIA GPUs, MPI elsewhere. `on_loss` is told, on another thread, when a rank is
    /// gone, where the engine doesn't end them all by itself.
    ///
    /// # Errors
    /// An engine that this build lacks, by the name of its feature; ranks that don't come.
    pub fn connect(&self, device: &Device, on_loss: fn(&str)) -> Result<Ranks> {
        let _ = on_loss;
        #[cfg(feature = "nccl")]
        if let Device::Cuda(device) = device {
            return super::nccl::connect(self, device, on_loss);
        }
        if self.by != Launcher::Torchrun {
            #[cfg(feature = "mpi")]
            return super::mpi::connect(self);
        }
        Err(self.missing(device))
    }

    /// Where the first rank is met.
    ///
    /// # Errors
    /// Several machines, and nobody said.
    #[cfg(feature = "nccl")]
    pub(super) fn meeting(&self) -> Result<&str> {
        self.meeting.as_deref().ok_or_else(|| {
            Error::Config(format!(
                "{} processes on several machines need the address of the first one: set MASTER_ADDR and MASTER_PORT for all of them",
                self.size
            ))
        })
    }

    fn missing(&self, device: &Device) -> Error {
        let by = self.by.name();
        let wanted = match (device, self.by) {
            (Device::Cuda(_), _) => "build it with --features nccl",
            (_, Launcher::Torchrun) => {
                "on the CPU and on Metal start them with mpirun or srun, and a qat built with --features mpi"
            }
            _ => "build it with --features mpi (Open MPI), or with --features nccl for NVIDIA GPUs",
        };
        Error::Config(format!(
            "{by} started {} processes to train together, for which this build of qat lacks the engine; {wanted}, or start one process",
            self.size
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        let find =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        Launch::of(&find)
    }

    #[test]
    fn every_launcher_is_understood_and_one_process_is_alone() {
        let of = |variables: &[(&str, &str)]| {
            let launch = launch(variables).expect("understood").expect("several");
            (launch.by, launch.rank, launch.size, launch.local, launch.meeting)
        };
        let open = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "3"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
        ];
        assert_eq!(of(&open), (Launcher::Mpirun, 3, 4, 3, Some("127.0.0.1:29500".into())));
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
        ];
        assert_eq!(of(&slurm), (Launcher::Srun, 5, 8, 1, None));
        let torch = [
            ("RANK", "1"),
            ("WORLD_SIZE", "2"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node7"),
            ("MASTER_PORT", "4000"),
        ];
        assert_eq!(of(&torch), (Launcher::Torchrun, 1, 2, 1, Some("node7:4000".into())));
        for alone in [&[][..], &[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")], &[("WORLD_SIZE", "1")]] {
            assert_eq!(launch(alone).expect("understood"), None);
        }
    }

    #[test]
    fn variables_that_contradict_themselves_are_refused_by_name() {
        let refused = |variables: &[(&str, &str)]| launch(variables).expect_err("refused").to_string();
        let m = refused(&[("WORLD_SIZE", "2")]);
        assert!(m.contains("RANK = nothing") && m.contains("unset WORLD_SIZE"), "{m}");
        assert!(refused(&[("WORLD_SIZE", "2"), ("RANK", "2")]).contains("below 2"));
        assert!(refused(&[("OMPI_COMM_WORLD_SIZE", "two")]).contains("OMPI_COMM_WORLD_SIZE = \"two\""));
    }
}
