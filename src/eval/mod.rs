//! Evaluation: what a model is asked, and how its answers are judged.

pub mod bound;
pub mod choice;
pub mod corrections;
pub mod countdown;
pub mod formats;
pub mod human_eval;
pub mod sandbox;
pub mod score;
pub mod statistics;
pub mod text;
