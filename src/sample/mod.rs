//! Sampling: from a canvas of masks to text.

mod request;

pub use request::{Canvas, Commit, CountSchedule, Finish, Generation, Order, Part, Request, Step};
