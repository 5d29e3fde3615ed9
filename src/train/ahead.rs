//! The batches of the next step, made on a thread of their own while the machine works on the one before.

use super::batch::Prepared;
use super::data::{Cursor, Examples};
use super::learner::Recipe;
use crate::error::Result;
use crate::rng::Rng;

/// The batches of a step.
pub(super) struct Batches {
    /// What they were made by.
    pub(super) recipe: Recipe,
    /// Where the data stood before and after.
    pub(super) from: Cursor,
    pub(super) to: Cursor,
    /// One a pass.
    pub(super) parts: Vec<Prepared>,
}

impl Batches {
    /// Those of the step that begins at `from`, in the memory of `spare`.
    ///
    /// # Errors
    /// Those of the data.
    pub(super) fn new(
        data: &dyn Examples,
        from: &Cursor,
        recipe: &Recipe,
        mut spare: Vec<Prepared>,
    ) -> Result<Self> {
        let rng = Rng::new(recipe.seed);
        let mut cursor = from.clone();
        spare.resize_with(recipe.accumulate.max(1), Prepared::default);
        for prepared in &mut spare {
            prepared.clear();
            for _ in 0..recipe.batch {
                let number = cursor.examples;
                let example = data.next(&mut cursor)?;
                prepared.add(&example, number, recipe.objective, &rng, recipe.documents)?;
            }
            prepared.weigh(recipe.objective, recipe.accumulate);
        }
        Ok(Self { recipe: *recipe, from: from.clone(), to: cursor, parts: spare })
    }
}
