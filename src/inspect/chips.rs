//! Memory bandwidths of Apple's chips, and the time that they allow.
//!
//! Knows no model. Nothing here was measured: it is what a pass would take if memory were its only limit.

/// A chip.
#[derive(Debug, Clone, Copy)]
pub struct Chip {
    /// What Apple calls it.
    pub name: &'static str,
    /// Bandwidth of its unified memory, in GB/s (10⁹ bytes), of the fastest variant sold under the name.
    pub gb_per_s: f64,
}

/// M1 to M5, from Apple's announcements (apple.com/newsroom) and technical specifications (support.apple.com/specs) of the
/// Macs that have them. For M1 Apple gives no number: it is that of its memory, 128 bits of LPDDR4X-4266 (Apple says that
/// the 100 GB/s of M2 are 50 % more). Of M3 Max, M4 Max and M5 Max there are variants with 300, 410 and 460 GB/s. There is
/// no Ultra of M4, and as of early 2026 none of M5.
pub const CHIPS: [Chip; 18] = [
    chip("M1", 68.25),
    chip("M1 Pro", 200.0),
    chip("M1 Max", 400.0),
    chip("M1 Ultra", 800.0),
    chip("M2", 100.0),
    chip("M2 Pro", 200.0),
    chip("M2 Max", 400.0),
    chip("M2 Ultra", 800.0),
    chip("M3", 100.0),
    chip("M3 Pro", 150.0),
    chip("M3 Max", 400.0),
    chip("M3 Ultra", 819.0),
    chip("M4", 120.0),
    chip("M4 Pro", 273.0),
    chip("M4 Max", 546.0),
    chip("M5", 153.0),
    chip("M5 Pro", 307.0),
    chip("M5 Max", 614.0),
];

const fn chip(name: &'static str, gb_per_s: f64) -> Chip {
    Chip { name, gb_per_s }
}

impl Chip {
    /// Milliseconds in which so many bytes pass at full bandwidth.
    pub fn milliseconds(&self, bytes: u64) -> f64 {
        bytes as f64 / self.gb_per_s / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_megabytes_take_a_millisecond_at_a_hundred_gigabytes_a_second() {
        assert_eq!(chip("M2", 100.0).milliseconds(100_000_000), 1.0);
    }
}
