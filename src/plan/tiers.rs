//! Devices by the memory that an app, or a GPU, may take of them.
//!
//! Knows no model. Nothing here was measured: limits are those that developers report, bandwidths what the memory that is built in can do.

/// Memory that a session takes beside its buffers: the app, Metal's heap and compiled kernels; reports say 50 to 150 MB.
const BESIDE: u64 = 150_000_000;

/// A kind of device.
#[derive(Debug, Clone, Copy)]
pub struct Tier {
    /// Its name.
    pub name: &'static str,
    /// Its memory, in GB.
    pub memory: u64,
    /// What may be taken of it, in bytes.
    pub limit: u64,
    /// Bandwidth of the slowest device of the kind, in GB/s (10⁹ bytes).
    pub gb_per_s: f64,
    /// Whether it can train.
    pub trains: bool,
}

impl Tier {
    /// What is left for a model's buffers.
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(BESIDE)
    }
}

/// iPhones end apps above a limit: about 3 GB of 6 and 8 GB, with the entitlement com.apple.developer.kernel.increased-memory-limit about
/// 4.2 of 6 and 6 of 8 and 12 GB (reports of developers; for 12 GB none says what it is without). Their bandwidths follow from the memory:
/// 64 bits of LPDDR4X-4266 (A14, A15), LPDDR5-6400 (A17 Pro), LPDDR5X-9600 (A19 Pro).
///
/// A Mac's GPU may take two thirds of the memory up to 32 GB, three quarters above (`recommendedMaxWorkingSetSize`); bandwidths are those of
/// the slowest chip that is sold with so much: M1, M1, M2, M4, M4 Pro, M4 Pro.
pub const TIERS: [Tier; 11] = [
    iphone("iPhone 6 GB", 6, 3000, 34.1),
    iphone("iPhone 6 GB, entitlement", 6, 4200, 34.1),
    iphone("iPhone 8 GB", 8, 3000, 51.2),
    iphone("iPhone 8 GB, entitlement", 8, 6000, 51.2),
    iphone("iPhone 12 GB, entitlement", 12, 6000, 76.8),
    mac("Mac 8 GB", 8, 68.25),
    mac("Mac 16 GB", 16, 68.25),
    mac("Mac 24 GB", 24, 100.0),
    mac("Mac 32 GB", 32, 120.0),
    mac("Mac 48 GB", 48, 273.0),
    mac("Mac 64 GB", 64, 273.0),
];

const fn iphone(name: &'static str, memory: u64, limit_mb: u64, gb_per_s: f64) -> Tier {
    Tier { name, memory, limit: limit_mb * 1_000_000, gb_per_s, trains: false }
}

/// A Mac with so many GiB.
const fn mac(name: &'static str, memory: u64, gb_per_s: f64) -> Tier {
    let bytes = memory << 30;
    let limit = if memory <= 32 { bytes / 3 * 2 } else { bytes / 4 * 3 };
    Tier { name, memory, limit, gb_per_s, trains: true }
}

/// The Macs that can train what takes so many bytes of a GPU's limit.
pub fn training(bytes: u64) -> impl Iterator<Item = &'static Tier> {
    TIERS.iter().filter(move |tier| tier.trains && tier.room() >= bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_is_never_less_room() {
        for kind in [false, true] {
            let rooms: Vec<u64> = TIERS.iter().filter(|tier| tier.trains == kind).map(Tier::room).collect();
            assert!(!rooms.is_empty());
        }
        let macs: Vec<u64> = TIERS.iter().filter(|tier| tier.trains).map(Tier::room).collect();
        assert!(macs.is_sorted() && macs[0] == (8 << 30) / 3 * 2 - BESIDE, "{macs:?}");
        assert_eq!(training(20 << 30).map(|tier| tier.memory).collect::<Vec<_>>(), [32, 48, 64]);
    }
}
