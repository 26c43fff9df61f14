//! The Verifier of RFC 9334: bytes, time and policy in, a decision out. Pure.
pub mod evidence;
