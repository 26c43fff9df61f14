/// Probes over one pair in one share epoch.
pub const PROBES_PER_PAIR_MAX: u32 = 8;
