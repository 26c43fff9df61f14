//! Tests that cross modules. Those of one module stand beside its code.
mod adversary;
mod arbitrary;
mod endorsement;
mod recorded;
