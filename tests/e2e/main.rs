//! End to end, over real processes and software TPMs. Needs the binaries: `cluster/test` builds them first.
//!
//! One file for each kind of fault. Few tests, and never the only test of a rule.
#![forbid(unsafe_code)]

mod surroundings;
