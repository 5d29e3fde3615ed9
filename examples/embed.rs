//! Embedding lacuna in a latency-critical loop: the model is loaded once, every buffer is allocated
//! before the first request, each step is seen as it happens, and a request that runs out of time
//! is cancelled between two steps.
//!
//! ```sh
//! cargo run --release --example embed            # the bundled model
//! cargo run --release --example embed -- DIR     # a model folder or a Hugging Face id
//! ```

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lacuna::backend::cpu::Cpu;
use lacuna::io::ModelFiles;
use lacuna::model::LoadOptions;
use lacuna::sample::{Canvas, Limits, Observer, Part, Request, Sampler, Step};
use lacuna::{Error, Model};

/// Stops a request at its deadline and remembers how long its steps took.
struct Deadline {
    until: Instant,
    last: Instant,
    slowest: Duration,
    steps: usize,
}

impl Deadline {
    fn starting_now(budget: Duration) -> Self {
        let now = Instant::now();
        Self { until: now + budget, last: now, slowest: Duration::ZERO, steps: 0 }
    }
}

impl Observer for Deadline {
    fn step(&mut self, _: Step<'_>) -> ControlFlow<()> {
        let now = Instant::now();
        self.slowest = self.slowest.max(now - self.last);
        self.last = now;
        self.steps += 1;
        if now < self.until { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

fn main() -> lacuna::Result<()> {
    let files = ModelFiles::find(std::env::args().nth(1).as_deref())?;
    let tokenizer = files.tokenizer.as_ref().ok_or(Error::Tokenizer("the model has none".into()))?;
    let model = Arc::new(Model::load(Cpu::<f32>::new(None)?, &files, LoadOptions::default())?);

    // One sequence of at most 96 tokens at a time: no request allocates activations.
    let mut sampler = Sampler::new(model, Limits { sequences: 1, tokens: 96 })?;
    let start = files.special.bos.as_ref().or(files.special.eos.as_ref()).map(|t| t.id);

    for (left, right) in [("ROMEO:\n", "\nJULIET:"), ("The king", "the queen.")] {
        let given = |text: &str| tokenizer.encode(text).map(Part::Fixed);
        let parts = [Part::Fixed(start.into_iter().collect()), given(left)?, Part::Gap(16), given(right)?];
        let mut request = Request::new(Canvas::new(&parts));
        request.steps = 16;
        for budget in [Duration::from_secs(5), Duration::from_micros(1)] {
            let mut deadline = Deadline::starting_now(budget);
            let began = Instant::now();
            let result = sampler.generate_with(std::slice::from_ref(&request), &mut deadline)?;
            let took = began.elapsed();
            match result.into_iter().next() {
                Some(Ok(out)) => println!(
                    "{:?}\n  {} tokens, {} forward passes, {took:.1?}, slowest step {:.1?}",
                    tokenizer.decode(&out.ids)?,
                    out.tokens,
                    out.nfe,
                    deadline.slowest
                ),
                _ => {
                    println!("  cancelled after {} step(s), {took:.1?}: budget {budget:.1?}", deadline.steps)
                }
            }
        }
    }
    Ok(())
}
