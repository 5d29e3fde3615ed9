//! Sampling: from a canvas of masks to text.

mod autoregressive;
mod checks;
mod plain;
mod plan;
mod request;
mod running;
mod sampler;
mod steps;
mod trace;

pub use plain::{PlainInput, PlainOptions, PlainOutput, plain_loop, planned};
pub use plan::{MemoryPlan, most_sequences};
pub use request::{Canvas, Commit, CountSchedule, Finish, Generation, Order, Part, Request, Step};
pub use sampler::{Limits, Observer, Pace, Sampler};
pub use trace::{Trace, TraceStep};
