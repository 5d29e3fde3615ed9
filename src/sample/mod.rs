//! Sampling: from a canvas of masks to text.

mod request;
mod trace;

pub use request::{Canvas, Commit, CountSchedule, Finish, Generation, Order, Part, Request, Step};
pub use trace::{Trace, TraceStep};
