//! Tests over real software TPMs. Without swtpm they say so and test nothing.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "helpers of tests")]
mod appraisal;
mod attester;
mod sealing;
mod support;
